"""other_detector.py: detections in COCO form, and their AP."""

import numpy as np
import pytest
from other_detector import average_precision, to_coco
from pycocotools.coco import COCO

IDS = [7, 3, 5]  # without order, and 5 without an object


@pytest.fixture
def truth() -> COCO:
    """150 boxes of 20 x 10 pixels in one image, the first 50 of category 7 and the others of 3."""
    boxes = [[25 * (i % 15), 15 * (i // 15), 20, 10] for i in range(150)]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 4, "width": 400, "height": 200}],
        "categories": [{"id": i, "name": str(i)} for i in IDS],
        "annotations": [
            {"id": i + 1, "image_id": 4, "category_id": IDS[i >= 50], "bbox": box, "area": 200}
            | {"iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }
    coco.createIndex()
    return coco


@pytest.mark.parametrize(
    ("shift", "ap"),
    [
        (0, 100),
        (5, 30),  # 15 x 10 of 25 x 10 pixels: an IoU of 0.6, and so 3 of the 10 thresholds
    ],
)
def test_ap_follows_from_the_iou_and_counts_more_than_100_objects(truth, shift, ap):
    corners = np.array([annotation["bbox"] for annotation in truth.dataset["annotations"]], float)
    corners[:, 2:] += corners[:, :2]
    corners[:, [0, 2]] += shift
    labels = np.repeat([0.0, 1.0], [50, 100])
    found = to_coco(4, corners, np.linspace(0.9, 0.1, 150), labels, IDS)
    assert found[60]["bbox"] == [shift, 60, 20, 10] and found[60]["category_id"] == 3
    assert average_precision(truth, found) == pytest.approx((ap, 100))


def test_half_of_the_objects_is_half_of_the_ap(truth):
    """Of the 101 recalls of COCO, 0 to 0.5 are reached."""
    found = [
        {"image_id": 4, "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.5}
        for row in truth.dataset["annotations"][::2]
    ]
    assert average_precision(truth, found) == pytest.approx((100 * 51 / 101,) * 2)
    assert average_precision(truth, []) == (0, 0)
