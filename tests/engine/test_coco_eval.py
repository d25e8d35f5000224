"""AP and matches by faster-coco-eval against pycocotools, bit for bit where sums allow it."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gnws_d2.engine.evaluation import coco_eval, loaded
from gnws_d2.errors import ConfigError
from gnws_d2.projects.report.matching import confusion_matrix, match

SIDE, SIGMAS = 200, [0.05, 0.1, 0.2]


def box_of(rng):
    width, height = np.exp(rng.uniform(1, 5, 2))
    return [*rng.uniform(0, SIDE - 20, 2).tolist(), width, height]


def annotation(rng, box):
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width * 0.7, y + height, x, y + height * 0.9]
    points = np.c_[rng.uniform(x, x + width, 3), rng.uniform(y, y + height, 3), [2, 1, 2]]
    mask = mask_util.merge(mask_util.frPyObjects([corners], SIDE, SIDE))
    mask["counts"] = mask["counts"].decode()
    return {"bbox": box, "segmentation": mask, "keypoints": points.ravel().tolist()}


def scene(seed, ids):
    """Truth with crowds and small, large and unlabeled objects, and detections with equal scores,
    more than 100 of one image and class."""
    rng = np.random.default_rng(seed)
    images = [{"id": id_, "width": SIDE, "height": SIDE} for id_ in ids]
    categories = [{"id": id_, "name": f"c{id_}"} for id_ in (9, 2, 40)]
    objects, found = [], []
    for number in range(40):
        box, image = box_of(rng), ids[rng.integers(len(ids) - 1)]  # the last has none
        category = [9, 2][rng.integers(2)]
        made = {**annotation(rng, box), "category_id": category, "image_id": image}
        seen = 3 * (rng.random() < 0.8)
        more = {"id": number + 1, "iscrowd": int(rng.random() < 0.2), "num_keypoints": seen}
        objects.append({**made, **more, "area": box[2] * box[3] * 0.8})
        for _ in range(rng.integers(5)):
            moved = [value + rng.normal(0, 2) for value in box[:2]] + box[2:]
            row = {**annotation(rng, moved), "category_id": [2, 9, 40][rng.integers(3)]}
            row["keypoints"] = (np.array(made["keypoints"]) + rng.normal(0, 1, 9)).tolist()
            found.append({**row, "image_id": image, "score": round(rng.random(), 1)})
    crowded = [{**found[0], "bbox": box_of(rng), "score": 0.25} for _ in range(130)]
    for row in crowded:
        row.update(annotation(rng, row["bbox"]))
    truth = COCO()
    truth.dataset = {"images": images, "categories": categories, "annotations": objects}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, [*found, *crowded]


def by_pycocotools(truth, rows, task, limits):
    dropped = "bbox" if task == "segm" else "segmentation"
    copied = COCO()
    copied.dataset = {**truth.dataset, "annotations": [{**a} for a in truth.anns.values()]}
    with contextlib.redirect_stdout(io.StringIO()):
        copied.createIndex()
        found = copied.loadRes([{k: v for k, v in r.items() if k != dropped} for r in rows])
        evaluation = COCOeval(copied, found, task)
        if task == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
        else:
            evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        if limits[-1] == 100:  # others it cannot summarize
            evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("limits", [[1, 10, 100], [1, 10, 200]], ids=str)
@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_pycocotools(seed, task, limits):
    truth, rows = scene(seed, [["b/2.png", "a", "c"], [7, 3, 2**40]][seed % 2])
    theirs = by_pycocotools(truth, rows, task, limits)
    ours = coco_eval(*loaded(truth, rows, task), task, limits, SIGMAS)
    ours.evaluate()
    ours.accumulate()
    ours.summarize()
    for part in ("precision", "recall", "scores"):
        np.testing.assert_allclose(ours.eval[part], theirs.eval[part], rtol=0, atol=1e-15)
    assert (theirs.eval["precision"] > 0).any()
    if len(theirs.stats):
        np.testing.assert_allclose(ours.stats[: len(theirs.stats)], theirs.stats, atol=1e-12)


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("seed", range(3))
def test_the_matches_of_the_report_are_pycocotools(seed, task):
    truth, rows = scene(seed, [["b/2.png", "a", "c"], [7, 3, 2**40]][seed % 2])
    # Of an image and of a class that the file lacks.
    stray = [{"id": 41, "image_id": "x"}, {"id": 42, "category_id": 77}]
    truth.dataset["annotations"] += [{**truth.anns[1], **a} for a in stray]
    rows.append({**rows[0], "category_id": 77})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    theirs = by_pycocotools(truth, rows, task, [1, 10, 200])
    right, wrong, finders = set(), set(), {}
    for found in theirs.evalImgs:
        if found and found["aRng"] == theirs.params.areaRng[0]:
            assert found["maxDet"] == theirs.params.maxDets[-1]
            each = zip(found["dtIds"], found["dtMatches"][0], found["dtIgnore"][0], strict=True)
            for id_, matched, ignored in each:
                if not ignored:
                    (right if matched else wrong).add(id_)
            each = zip(found["gtIds"], found["gtMatches"][0], found["gtIgnore"], strict=True)
            finders |= {id_: int(by) or None for id_, by, ignored in each if not ignored}
    matches = match(truth, rows, task, SIGMAS)
    assert {row["id"] for row in matches.right} == right != set()
    assert {row["id"] for row in matches.wrong} == wrong != set()
    assert {a["id"]: by and by["id"] for a, by in matches.finders} == finders
    confusion_matrix(truth, rows, task, 0.5, SIGMAS)


def test_some_of_the_images_alone():
    truth, rows = scene(1, [7, 3, 2**40])
    part = COCO()
    part.dataset = {**truth.dataset, "images": truth.dataset["images"][:1]}
    part.dataset["annotations"] = [a for a in truth.anns.values() if a["image_id"] == 7]
    with contextlib.redirect_stdout(io.StringIO()):
        part.createIndex()
    theirs = by_pycocotools(part, [r for r in rows if r["image_id"] == 7], "bbox", [1, 10, 100])
    ours = coco_eval(*loaded(truth, rows, "bbox", [7]), "bbox", [1, 10, 100])
    ours.evaluate()
    ours.accumulate()
    np.testing.assert_allclose(ours.eval["precision"], theirs.eval["precision"], atol=1e-15)


def test_sigmas_of_another_number_than_the_keypoints_are_refused():
    truth, rows = scene(1, [7, 3, 2**40])
    with pytest.raises(ConfigError, match=r"KEYPOINT_OKS_SIGMAS has 17 values .* 3 keypoints"):
        coco_eval(*loaded(truth, rows, "keypoints"), "keypoints")
