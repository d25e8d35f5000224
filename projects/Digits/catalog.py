"""Digits in Detectron2's catalogs: for each of "train" and "val"

- ``digits_train``: instances with masks and keypoints;
- ``digits_sem_seg_train``: semantic segmentation into background and ten digits;
- ``digits_panoptic_train``: instances, and semantic segmentation into things and background.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from gnws_d2.files import cache_path

from .annotation import KEYPOINTS, categories
from .make import NAME, json_file, make_digits
from .scans import SPLITS


def load_split(root: Path, split: str, labels: str = "") -> list[dict[str, Any]]:
    """Load a split in Detectron2's standard format. Makes Digits in ``root`` first if needed.

    Args:
        root: the folder that holds Digits' folder.
        split: "train" or "val".
        labels: the label images to add: "stuff", or "semantic", which leaves out the instances.
    """
    folder = make_digits(root)
    records = load_coco_json(
        str(json_file(folder, split)), str(folder / split), f"digits_{split}"
    )
    for record in records if labels else ():
        name = Path(record["file_name"]).name
        record["sem_seg_file_name"] = str(folder / f"{split}_{labels}" / name)
        if labels == "semantic":
            del record["annotations"]
    return records


def register() -> None:
    """Register the datasets. Nothing is made before one is loaded.

    The cache folder is looked up now. After a change of ``$GNWS_D2_CACHE`` call this again to
    register the datasets in the new folder. A ``COCOEvaluator`` reads the annotation file when it
    is built, so load the dataset first, as Detectron2's trainers do.
    """
    root = cache_path()
    classes = [category["name"] for category in categories()]
    for split in SPLITS:
        instances = {
            "json_file": str(json_file(root / NAME, split)),
            "image_root": str(root / NAME / split),
            "thing_classes": classes,
            "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories())},
            "keypoint_names": list(KEYPOINTS),
            "keypoint_flip_map": [("left", "right")],
            "keypoint_connection_rules": [],
        }
        semantic = {"stuff_classes": ["ground", *classes], "ignore_label": 255}
        # All things of a panoptic model are one class of its semantic head, the first.
        panoptic = {**instances, "stuff_classes": ["things", "ground"], "ignore_label": 255}
        for name, labels, evaluator, metadata in (
            (f"digits_{split}", "", "coco", instances),
            (f"digits_sem_seg_{split}", "semantic", "sem_seg", semantic),
            (f"digits_panoptic_{split}", "stuff", "coco_and_sem_seg", panoptic),
        ):
            # Neither catalog lets a value be replaced.
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
            DatasetCatalog.register(name, functools.partial(load_split, root, split, labels))
            MetadataCatalog.get(name).set(evaluator_type=evaluator, **metadata)
