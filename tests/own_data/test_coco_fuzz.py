"""Any value anywhere in a COCO file: refused in one line, or sound to train on and evaluate."""

import copy
import json
import math

import numpy as np
import pytest
from coco_files import HEIGHT, MASKS, WIDTH, fit, make_coco, read, truth
from detectron2.data import DatasetCatalog, DatasetMapper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from pycocotools.cocoeval import COCOeval

from gnws_d2.errors import DatasetError

ODD = [
    *(None, True, False, -1, 0, 1, 2, 7, 10, 100, 0.5, 1e30, 1e308, math.nan, math.inf, -math.inf),
    *(10**18, 10**400, "", "1", "x", "a/b\0c", "../x", [], [1], [[]], [None], {}, {"a": 1}),
    *([0, 0, 5, 5], {"size": [HEIGHT, WIDTH], "counts": "x"}, {"size": [1, 1], "counts": [1]}),
]
VALUES = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=5)


def places(node, path=()):
    """The paths of all values below ``node``."""
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file with polygons, both kinds of RLE and keypoints, its content and the places in it."""
    folder = tmp_path_factory.mktemp("fuzzed")
    coco = read(make_coco(folder, images=2))
    first, second, *_ = coco["annotations"]
    mask, size = np.zeros((HEIGHT, WIDTH), np.uint8, "F"), [HEIGHT, WIDTH]
    x, y, width, height = first["bbox"]
    mask[y : y + height, x : x + width] = 1
    first["segmentation"] = {"size": size, "counts": mask_util.encode(mask)["counts"].decode()}
    runs = [HEIGHT * 20, HEIGHT * 10, HEIGHT * (WIDTH - 30)]
    second.update(bbox=[20, 0, 10, HEIGHT], segmentation={"size": size, "counts": runs})
    for annotation in coco["annotations"]:
        annotation["keypoints"] = [annotation["bbox"][0] + 1, annotation["bbox"][1] + 1, 2]
    return folder / "mine.json", coco, sorted(places(coco), key=str)


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_anywhere(made, data):
    file, whole, where = made
    coco = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(where))
        node = coco
        try:
            for key in path[:-1]:
                node = node[key]
            if data.draw(st.booleans()) and isinstance(node, dict):
                node.pop(path[-1], None)
            else:
                node[path[-1]] = data.draw(VALUES)
        except (KeyError, IndexError, TypeError):
            continue  # the first change took this place away
    file.write_text(json.dumps(coco))
    name, skip = str(file), str(data.draw(st.booleans()))
    opts = ["INPUT.MIN_SIZE_TRAIN", "(48,)", "DATALOADER.SKIP_BAD_ANNOTATIONS", skip]
    try:
        cfg = fit(name, name, *opts, "MODEL.DEVICE", "cpu", name=MASKS)
    except DatasetError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return
    mapper = DatasetMapper(cfg, is_train=True)
    for record in DatasetCatalog.get(name):
        instances = mapper(record)["instances"]
        boxes = instances.gt_boxes.tensor
        assert boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (instances.gt_classes < len(cfg.DATASETS.CLASSES)).all()
    used = truth(name)
    results = [
        {
            **{key: annotation[key] for key in ("image_id", "category_id", "bbox")},
            "segmentation": mask_util.encode(np.asfortranarray(used.annToMask(annotation))),
            "score": 1.0,
        }
        for annotation in used.anns.values()
        if "segmentation" in annotation
    ]
    if results and len(results) == len(used.anns):
        evaluation = COCOeval(used, used.loadRes(results), "segm")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
        assert evaluation.stats[0] in (-1, pytest.approx(1))
