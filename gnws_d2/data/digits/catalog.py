"""Digits in Detectron2's catalogs, as ``digits_train`` and ``digits_val``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ...cache import cache_path
from .annotation import categories
from .make import NAME, image_root, json_file, make_digits
from .scans import SPLITS


def load_split(root: Path, split: str) -> list[dict[str, Any]]:
    """Load a split in Detectron2's standard format, making Digits under ``root`` if needed."""
    from detectron2.data.datasets import load_coco_json

    folder = make_digits(root)
    return load_coco_json(
        str(json_file(folder, split)), str(image_root(folder, split)), f"digits_{split}"
    )


def register() -> None:
    """Register ``digits_train`` and ``digits_val``; nothing is made before they are loaded.

    The cache folder is looked up now: after a change of ``$GNWS_D2_CACHE`` call this again, and
    the datasets point to the new folder. A ``COCOEvaluator`` reads the annotation file when it is
    built, so load the dataset first, as Detectron2's trainers do.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    root = cache_path()
    for split in SPLITS:
        name = f"digits_{split}"
        # A catalog refuses a name that it has, and metadata a value other than the one it has.
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
        DatasetCatalog.register(name, functools.partial(load_split, root, split))
        MetadataCatalog.get(name).set(
            evaluator_type="coco",
            json_file=str(json_file(root / NAME, split)),
            image_root=str(image_root(root / NAME, split)),
            thing_classes=[c["name"] for c in categories()],
            thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories())},
        )
