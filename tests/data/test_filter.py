"""Which images and objects are trained on: the rules of MMDetection's CocoDataset, one by one."""

import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image

from gnws_d2 import load_config
from gnws_d2.data import filter_dataset, load_train_dataset
from gnws_d2.errors import DatasetError

# By name: height, width, and the boxes XYWH of its objects; "crowd" after a crowd's.
IMAGES = {
    "good": (40, 50, [(5, 5, 20, 20), (0, 0, 1, 1), (1, 1, 0.99, 9), (1, 1, 9, 0.5)]),
    "flat": (31, 50, [(5, 5, 20, 20)]),
    "narrow": (50, 31, [(5, 5, 20, 20)]),
    "smallest": (32, 32, [(5, 5, 20, 20)]),
    "crowd": (40, 50, [(5, 5, 20, 20, "crowd")]),
    "dust": (40, 50, [(5, 5, 0.5, 20)]),
    "outside": (40, 50, [(50, 5, 20, 20), (5, -20, 20, 20), (45, 35, 20, 20)]),
    "empty": (40, 50, []),
}
KEPT = {"good": 2, "smallest": 1, "crowd": 0, "dust": 0, "outside": 1}
CONFIG = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"


@pytest.fixture
def records():
    """IMAGES, registered as ``filtered``."""
    found = []
    for name, (height, width, objects) in IMAGES.items():
        annotations = [
            {
                "bbox": box[:4],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "iscrowd": len(box) - 4,
            }
            for box in objects
        ]
        size = {"height": height, "width": width}
        found.append({"file_name": f"{name}.png", **size, "annotations": annotations})
    DatasetCatalog.register("filtered", lambda: found)
    yield found
    DatasetCatalog.remove("filtered")


def config(*opts):
    return load_config(CONFIG, ["DATASETS.TRAIN", "('filtered',)", "MODEL.DEVICE", "cpu", *opts])


def found(dicts):
    """The number of objects of each image, without crowds, by its name."""
    return {d["file_name"][:-4]: sum(not a["iscrowd"] for a in d["annotations"]) for d in dicts}


WITH_OBJECTS = {n: len(boxes) for n, (_, _, boxes) in IMAGES.items() if n not in ("crowd", "empty")}
RULES = [
    ("", KEPT),
    ("DATALOADER.FILTER detectron2", WITH_OBJECTS),
    ("DATALOADER.FILTER_EMPTY_ANNOTATIONS False", {**KEPT, "empty": 0}),
]


@pytest.mark.parametrize(("opts", "expected"), RULES)
def test_rules(records, caplog, opts, expected):
    caplog.set_level(logging.INFO)
    assert found(load_train_dataset(config(*opts.split()))) == expected
    said = f"Training on {len(expected)} of 8 images and on 4 of their 9 objects"
    assert (said in caplog.text) == ("detectron2" not in opts)


def test_crowds_alone_are_nothing_to_train_on(records, tmp_path):
    [crowd] = [record for record in records if record["file_name"] == "crowd.png"]
    Image.new("L", (crowd.pop("width"), crowd.pop("height"))).save(tmp_path / "crowd.png")
    records[:] = [{**crowd, "file_name": str(tmp_path / "crowd.png")}]  # Detectron2 takes its size
    with pytest.raises(DatasetError, match=r"none of 1 images has an object that is no crowd"):
        load_train_dataset(config())


def test_what_is_given_stays_and_boxes_come_in_any_mode():
    box = {"bbox": [5, 5, 5.5, 20], "bbox_mode": BoxMode.XYXY_ABS}
    large = {"bbox": [5, 5, 6, 6], "bbox_mode": BoxMode.XYXY_ABS}
    array = {"bbox": np.array([5, 5, 9, 9]), "bbox_mode": BoxMode.XYXY_ABS}
    rotated = {"bbox": [9, 9, 5, 5, 45], "bbox_mode": BoxMode.XYWHA_ABS}
    record = {"height": 40, "width": 50, "annotations": [box, large, array, rotated]}
    semantic = {"sem_seg_file_name": "a.png"}
    [kept, other] = filter_dataset([record, semantic])
    assert kept["annotations"] == [large, array, rotated] and other is semantic
    assert record["annotations"] == [box, large, array, rotated]


def test_a_dataset_of_which_nothing_is_left(records, monkeypatch):
    monkeypatch.setattr("gnws_d2.data.filter.MIN_IMAGE_SIDE", 64)
    with pytest.raises(DatasetError, match=r"filtered.*of 8 images.*DATALOADER\.FILTER"):
        load_train_dataset(config())
