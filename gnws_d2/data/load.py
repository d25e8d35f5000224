"""Loading the datasets that a config names, with errors that name them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from torch.utils.data import Dataset

from ..config import built_architecture
from ..errors import DatasetError
from .filter import MIN_IMAGE_SIDE, filter_dataset

logger = logging.getLogger(__name__)


def load_train_dataset(cfg: CfgNode) -> list[dict[str, Any]] | Dataset:
    """Load ``DATASETS.TRAIN``, filtered by ``DATALOADER.FILTER`` and Detectron2's keys.

    Raises:
        DatasetError: a dataset cannot be loaded, or no image is left.
    """
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    empty_too = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    by_detectron2 = cfg.DATALOADER.FILTER == "detectron2"
    with dataset_errors(cfg, cfg.DATASETS.TRAIN):
        dicts = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=by_detectron2 and not empty_too,
            min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    # A dataset of the user's own class is filtered by that.
    if by_detectron2 or not isinstance(dicts, list) or "annotations" not in dicts[0]:
        return dicts
    kept = filter_dataset(dicts, empty_too)
    if not kept:
        raise DatasetError(
            f"dataset {', '.join(cfg.DATASETS.TRAIN)}: none of {len(dicts)} images has annotations "
            f"and sides of {MIN_IMAGE_SIDE} pixels or more. Set DATALOADER.FILTER to "
            '"detectron2" to train on smaller images.'
        )
    return kept


@contextmanager
def dataset_errors(cfg: CfgNode, names: Sequence[str]) -> Iterator[None]:
    """Wrap the loading of registered datasets.

    Raises:
        DatasetError: one is not registered, cannot be loaded, or has more classes than the model.
    """
    for name in names:
        if name not in DatasetCatalog:
            raise DatasetError(_unregistered(name))
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


def _unregistered(name: str) -> str:
    if ".json" in name:
        fix = "Register the file first: gnws_d2.projects.own_data.fit_to_data(cfg)."
    else:
        known = sorted(DatasetCatalog.list())
        near = difflib.get_close_matches(name, known, n=3) or known
        fix = f"Did you mean {' or '.join(near[:3])}? Register a dataset before training starts."
    return f"DATASETS names {name!r}, which is not registered. {fix}"


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
