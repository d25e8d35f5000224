"""Evaluators where COCO's own would count wrong: many objects, ids, and truth that has changed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, BoxMode, Instances

from gnws_d2.engine import build_evaluator
from gnws_d2.errors import DatasetError

CORNERS = torch.tensor([[20.0 * (i % 20), 20.0 * (i // 20)] for i in range(200)])
BOXES = torch.cat([CORNERS, CORNERS + 14], 1)  # do not touch, in an image of 400 x 200 pixels


@pytest.fixture
def register():
    """``register(function, **metadata)`` a dataset, "case", of one class."""

    def make(function: Callable[[], list[dict]], **metadata: object) -> None:
        DatasetCatalog.pop("case", None)
        DatasetCatalog.register("case", function)
        MetadataCatalog.get("case").set(thing_classes=["cell"], evaluator_type="coco", **metadata)

    yield make
    DatasetCatalog.pop("case")
    MetadataCatalog.pop("case")


def record(boxes: torch.Tensor, image_id: object = 1, **members: object) -> dict:
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **copy.deepcopy(members)}
        for box in boxes.tolist()
    ]
    image = {"file_name": "a.png", "width": 400, "height": 200, "image_id": image_id}
    return {**image, "annotations": annotations}


def score(cfg, boxes: torch.Tensor, image_id: object = 1) -> float:
    """AP of these detections, each with another score."""
    found = Instances((200, 400), pred_boxes=Boxes(boxes))
    found.scores = torch.linspace(1, 0.5, len(boxes))
    found.pred_classes = torch.zeros(len(boxes), dtype=torch.long)
    evaluator = build_evaluator(cfg, "case")
    assert not isinstance(evaluator, DatasetEvaluators)
    evaluator.reset()
    evaluator.process([{"image_id": image_id}], [{"instances": found}])
    return evaluator.evaluate()["bbox"]["AP"]


def test_all_detections_of_an_image_count(tiny_config, register, caplog):
    """detectron2#3359: COCO's AP counts 100 of an image and class, which are half of these."""
    register(lambda: [record(BOXES)])
    cfg = tiny_config()
    for limit in (300, -1):
        cfg.TEST.DETECTIONS_PER_IMAGE = limit
        assert score(cfg, BOXES) == pytest.approx(100)
        assert "more objects" not in caplog.text
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    # At a precision of 1, recalls of 0 to 0.5 are reached: 51 of 101.
    assert score(cfg, BOXES[:100]) == pytest.approx(100 * 51 / 101)
    assert "(up to 200) than the 100 that the model detects at most" in caplog.text


@pytest.mark.parametrize(("image_id", "other"), [("0001", "1"), ("b/1.png", "a/1.png"), (7, 2)])
def test_ids_of_images_stay_as_they_are(tiny_config, register, image_id, other):
    register(lambda: [record(BOXES[:3], image_id), record(BOXES[3:5], other)])
    # Three of five objects: recalls of 0 to 0.6.
    cfg = tiny_config()
    assert score(cfg, BOXES[:3], image_id) == pytest.approx(100 * 61 / 101)
    file = Path(cfg.OUTPUT_DIR, "inference", "coco_instances_results.json")
    assert {found["image_id"] for found in json.loads(file.read_text())} == {image_id}


def test_ids_of_images_of_two_kinds_are_refused(tiny_config, register):
    register(lambda: [record(BOXES[:1], 1), record(BOXES[:1], "2")])
    with pytest.raises(DatasetError, match="case has ids of images that are numbers and others"):
        build_evaluator(tiny_config(), "case")


def test_the_truth_of_a_function_is_that_of_today(tiny_config, register):
    """detectron2#3859: corrected between two evaluations in one folder, and in one process."""
    records = [record(BOXES[:4] + 50)]
    register(lambda: records)
    assert score(tiny_config(), BOXES[:4]) == pytest.approx(0)
    records[:] = [record(BOXES[:4])]
    assert score(tiny_config(), BOXES[:4]) == pytest.approx(100)
    assert not hasattr(MetadataCatalog.get("case"), "json_file")


def test_keypoints_that_a_function_shares_stay_and_more_than_count_are_named(
    tiny_config, register, caplog
):
    """Detectron2's conversion moves them by half a pixel, each time."""
    records = [record(BOXES[:21], keypoints=[5.0, 6.0, 2.0])]
    register(lambda: records, keypoint_names=["tip"])
    for _ in range(2):
        truth = build_evaluator(tiny_config(), "case")._coco_api.anns.values()
        assert [a["keypoints"] for a in truth] == [[4.5, 5.5, 2.0]] * 21
    assert records[0]["annotations"][0]["keypoints"] == [5.0, 6.0, 2.0]
    assert "objects with keypoints (up to 21) than the 20 that COCO's keypoint AP" in caplog.text
