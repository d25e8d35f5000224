"""Digits: a small detection and segmentation dataset in COCO format, made on the spot.

Scanned handwritten digits, enlarged and drawn on textured backgrounds: 1 to 4 in an image of
160x160 pixels, 10 classes "0" to "9". It needs no download, and a small Mask R-CNN learns it from
random weights in minutes. Masks are stored as RLE, so train with
``INPUT.MASK_FORMAT = "bitmask"``. Importing this module registers the datasets; for "train", and
the same for "val":

- ``digits_train``: instances with masks and keypoints;
- ``digits_sem_seg_train``: semantic segmentation into background and ten digits;
- ``digits_panoptic_train``: instances, and semantic segmentation into things and background.

Source of the scans: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49 (CC BY 4.0), as packed in
scikit-learn's ``load_digits``.
"""

import functools
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from gnws_d2.files import cache_path

from .make import KEYPOINTS, NAME, NUM_TRAIN, NUM_VAL, categories, json_file, make_digits
from .scans import SPLITS, load_scans

__all__ = ["NAME", "NUM_TRAIN", "NUM_VAL", "load_scans", "make_digits", "register"]


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
            # The catalogs refuse to replace what they hold.
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
            DatasetCatalog.register(name, functools.partial(_load, root, split, labels))
            MetadataCatalog.get(name).set(evaluator_type=evaluator, **metadata)


def _load(root: Path, split: str, labels: str) -> list[dict[str, Any]]:
    """A split in Detectron2's standard format, with the label images ``labels``: "stuff", or
    "semantic", which leaves out the instances; "" for none. Makes Digits in ``root`` if needed."""
    folder = make_digits(root)
    images = str(folder / split)
    records = load_coco_json(str(json_file(folder, split)), images, f"digits_{split}")
    if not labels:
        return records
    for record in records:
        name = Path(record["file_name"]).name
        record["sem_seg_file_name"] = str(folder / f"{split}_{labels}" / name)
        if labels == "semantic":
            del record["annotations"]
    return records


register()
