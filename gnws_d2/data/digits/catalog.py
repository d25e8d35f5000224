"""Digits in Detectron2's catalogs: for each of "train" and "val"

- ``digits_train``: instances with masks and keypoints;
- ``digits_sem_seg_train``: semantic segmentation into ground and ten digits;
- ``digits_panoptic_train``: instances, and semantic segmentation into things and ground.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ...cache import cache_path
from .annotation import KEYPOINTS, categories
from .make import NAME, image_root, json_file, label_root, make_digits
from .scans import SPLITS


def load_split(root: Path, split: str) -> list[dict[str, Any]]:
    """Load a split in Detectron2's standard format, making Digits under ``root`` if needed."""
    from detectron2.data.datasets import load_coco_json

    folder = make_digits(root)
    return load_coco_json(
        str(json_file(folder, split)),
        str(image_root(folder, split)),
        f"digits_{split}",
    )


def load_with_labels(root: Path, split: str, kind: str) -> list[dict[str, Any]]:
    """Load a split with the label images of ``kind``; "semantic" has no instances beside them."""
    labels = label_root(make_digits(root), split, kind)
    records = load_split(root, split)
    for record in records:
        record["sem_seg_file_name"] = str(labels / Path(record["file_name"]).name)
        if kind == "semantic":
            del record["annotations"]
    return records


def register() -> None:
    """Register the datasets; nothing is made before one is loaded.

    The cache folder is looked up now: after a change of ``$GNWS_D2_CACHE`` call this again, and
    the datasets point to the new folder. A ``COCOEvaluator`` reads the annotation file when it is
    built, so load the dataset first, as Detectron2's trainers do.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    root = cache_path()
    classes = [c["name"] for c in categories()]
    for split in SPLITS:
        instances = {
            "json_file": str(json_file(root / NAME, split)),
            "image_root": str(image_root(root / NAME, split)),
            "thing_classes": classes,
            "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories())},
            "keypoint_names": list(KEYPOINTS),
            "keypoint_flip_map": [("left", "right")],
            "keypoint_connection_rules": [],
        }
        semantic = {"stuff_classes": ["ground", *classes], "ignore_label": 255}
        # The things of a panoptic model are one class of its semantic half, the first.
        panoptic = {**instances, "stuff_classes": ["things", "ground"], "ignore_label": 255}
        for name, load, kind, metadata in (
            (f"digits_{split}", load_split, "coco", instances),
            (f"digits_sem_seg_{split}", _load_semantic, "sem_seg", semantic),
            (f"digits_panoptic_{split}", _load_panoptic, "coco_and_sem_seg", panoptic),
        ):
            # A catalog refuses a name that it has, and metadata a value other than the one it has.
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
            DatasetCatalog.register(name, functools.partial(load, root, split))
            MetadataCatalog.get(name).set(evaluator_type=kind, **metadata)


_load_semantic = functools.partial(load_with_labels, kind="semantic")
_load_panoptic = functools.partial(load_with_labels, kind="stuff")
