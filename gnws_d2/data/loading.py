"""Loading registered datasets, checked: for training and for evaluation."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..config import built_architecture, dataset_names
from .catalog import CheckOptions, check_registered, is_coco, register_source, write_skipped
from .errors import DatasetError
from .source import is_source

logger = logging.getLogger(__name__)


@contextmanager
def dataset_errors(cfg: CfgNode, names: Sequence[str]) -> Iterator[None]:
    """Wrap the loading of registered datasets: what cannot be loaded, would be trained or evaluated
    wrong, or has more classes than the model raises DatasetError.

    The annotations of COCO files are checked before Detectron2 reads them.
    """
    skip_bad = cfg.DATALOADER.SKIP_BAD_ANNOTATIONS
    for name in names:
        if is_source(name) and name not in DatasetCatalog:
            register_source(name, options=CheckOptions(skip_bad))
        if name not in DatasetCatalog:
            raise DatasetError(_unregistered(name))
        if is_coco(name) and not is_source(name) and _exists(MetadataCatalog.get(name).json_file):
            check_registered(name, skip_bad)
    if comm.is_main_process():
        write_skipped(dataset_names(cfg), cfg.OUTPUT_DIR)
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(
            f"dataset {', '.join(names)}: {error.filename} does not exist. Put it there, or set "
            "DETECTRON2_DATASETS to the folder that holds the datasets."
        ) from error
    except AssertionError as error:
        raise DatasetError(f"dataset {', '.join(names)}: {error}") from error
    for name in names:
        _check_classes(cfg, name)


def check_records(names: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
    """Check the boxes of dicts in Detectron2's format that did not come from a checked COCO file.

    Raises:
        DatasetError: a box is not finite, or has no width or height.
    """
    for record in records:
        annotations = record.get("annotations", ())
        boxes = [a["bbox"] for a in annotations if len(a["bbox"]) == 4]
        if not boxes:
            continue
        values = np.asarray(boxes, np.float64)
        modes = np.array([a["bbox_mode"] for a in annotations if len(a["bbox"]) == 4])[:, None]
        # BoxMode: 0 and 2 are corners, 1 and 3 have width and height.
        sides = np.where(modes % 2 == 0, values[:, 2:] - values[:, :2], values[:, 2:])
        bad = ~np.isfinite(values).all(axis=1) | (sides <= 0).any(axis=1)
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            raise DatasetError(
                f"dataset {', '.join(names)}: {record['file_name']} has the box {boxes[index]}, "
                "which is not finite, or has no width or height. Repair the function that loads "
                "the dataset."
            )


def _unregistered(name: str) -> str:
    known = sorted(DatasetCatalog.list())
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Registered are {', '.join(known)}."
    return (
        f"DATASETS names {name!r}, which is neither registered nor a COCO file (*.json). {hint} "
        "Register a dataset of your own before training starts."
    )


def _exists(file: str) -> bool:
    return os.path.exists(PathManager.get_local_path(file))


def _check_classes(cfg: CfgNode, name: str) -> None:
    section, kind = {
        "GeneralizedRCNN": ("ROI_HEADS", "thing_classes"),
        "PanopticFPN": ("ROI_HEADS", "thing_classes"),
        "RetinaNet": ("RETINANET", "thing_classes"),
        "SemanticSegmentor": ("SEM_SEG_HEAD", "stuff_classes"),
    }.get(built_architecture(cfg), ("", ""))
    classes = MetadataCatalog.get(name).get(kind) or [] if kind else []
    if not classes:
        return
    predicted = cfg.MODEL[section].NUM_CLASSES
    if len(classes) > predicted:
        raise DatasetError(
            f"dataset {name} has {len(classes)} classes, but MODEL.{section}.NUM_CLASSES is "
            f"{predicted}. Set it to {len(classes)}."
        )
    if len(classes) < predicted:
        logger.warning(
            "Dataset %s has %d classes, but MODEL.%s.NUM_CLASSES is %d. Set it to %d, unless the "
            "other classes are in no dataset on purpose.",
            *(name, len(classes), section, predicted, len(classes)),
        )
