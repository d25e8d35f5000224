"""Loading the datasets that a config names, with errors that name them."""

import difflib
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from torch.utils.data import Dataset

from ..config import built_architecture
from ..errors import DatasetError, missing_package
from .filter import MIN_IMAGE_SIDE, filter_dataset, is_usable
from .images import image_size

logger = logging.getLogger(__name__)


def load_train_dataset(cfg: CfgNode) -> list[dict[str, Any]] | Dataset:
    """Load ``DATASETS.TRAIN``, filtered by ``DATALOADER.FILTER`` and Detectron2's keys.

    Raises:
        DatasetError: a dataset cannot be loaded, no object is left, or one is of a class that the
            model lacks.
    """
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    empty_too = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    by_detectron2 = cfg.DATALOADER.FILTER == "detectron2"
    with dataset_errors(cfg.DATASETS.TRAIN):
        dicts = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=False,  # below, where the error says why no image is left
            min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if not isinstance(dicts, list):  # a dataset of the user's own class is filtered by that
        return dicts
    for record in dicts:
        if "width" not in record:  # Detectron2's mapper sets it
            record["width"], record["height"], _ = image_size(record["file_name"])
    kept = dicts if by_detectron2 else filter_dataset(dicts, empty_too)
    if by_detectron2 and not empty_too and "annotations" in dicts[0]:
        kept = filter_images_with_only_crowd_annotations(dicts)
    highest = max((annotation["category_id"] for annotation, _ in _objects(kept)), default=-1)
    is_empty = not any(is_usable(annotation, record) for annotation, record in _objects(kept))
    if is_empty and all("annotations" in record for record in dicts):
        crowds = sum(bool(a.get("iscrowd")) for d in dicts for a in d["annotations"])
        raise DatasetError(
            f"dataset {', '.join(cfg.DATASETS.TRAIN)}: none of {len(dicts)} images has an object "
            "that is no crowd, has width and height, and is in an image with sides of "
            f"{MIN_IMAGE_SIDE} pixels or more ({crowds} annotations are crowds). Set iscrowd to 0 "
            'to train on crowds, and DATALOADER.FILTER to "detectron2" to train on smaller images.'
        )
    _check_classes(cfg, highest)
    return kept


def _objects(dicts: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each annotation that is no crowd, and its image."""
    for record in dicts:
        for annotation in record.get("annotations", ()):
            if not annotation.get("iscrowd"):
                yield annotation, record


def _check_classes(cfg: CfgNode, highest: int) -> None:
    """Compare the number of classes that the model predicts with the ``highest`` that is annotated
    and, as it may differ on purpose, with the datasets' names and the value of ignored pixels."""
    head, architecture = cfg.MODEL.SEM_SEG_HEAD, built_architecture(cfg)
    is_semantic = architecture in ("PanopticFPN", "SemanticSegmentor")
    if is_semantic and 0 <= head.IGNORE_VALUE < head.NUM_CLASSES:
        logger.warning(
            "MODEL.SEM_SEG_HEAD.IGNORE_VALUE %d is one of the %d classes, so that one is not "
            "trained. Set it to 65535 unless that is meant; labels may have 16 bits.",
            *(head.IGNORE_VALUE, head.NUM_CLASSES),
        )
    sections = {"GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS"}
    sections |= {"RetinaNet": "RETINANET", "SemanticSegmentor": "SEM_SEG_HEAD"}
    section = sections.get(architecture, "")
    kind = "stuff_classes" if section == "SEM_SEG_HEAD" else "thing_classes"
    predicted = cfg.MODEL[section].NUM_CLASSES if section else 0
    if section and kind == "thing_classes" and highest >= predicted:
        raise DatasetError(
            f"dataset {', '.join(cfg.DATASETS.TRAIN)} has objects of class {highest}, counted from "
            f"0, but MODEL.{section}.NUM_CLASSES is {predicted}. Set it to {highest + 1} or more."
        )
    for name in cfg.DATASETS.TRAIN if section else ():
        if (count := len(MetadataCatalog.get(name).get(kind, ()))) not in (0, predicted):
            logger.warning(
                "Dataset %s has %d classes, but MODEL.%s.NUM_CLASSES is %d. Set it to %d, unless "
                "the others are in no dataset on purpose.",
                *(name, count, section, predicted, count),
            )


@contextmanager
def dataset_errors(names: Sequence[str]) -> Iterator[None]:
    """Wrap the loading of registered datasets.

    Raises:
        DatasetError: one is not registered or cannot be loaded.
    """
    for name in names:
        if name not in DatasetCatalog:
            known = sorted(DatasetCatalog.list())
            near = " or ".join(difflib.get_close_matches(name, known, n=3) or known[:3])
            fix = f"Did you mean {near}? Register a dataset before training starts."
            if "/" in name or ".json" in name:
                fix = "If the file exists, register it: gnws_d2.projects.own_data.fit_to_data(cfg)."
            raise DatasetError(f"DATASETS names {name!r}, which is not registered. {fix}")
    what = f"dataset {', '.join(names)}"
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(
            f"{what}: {error.filename} does not exist. Put it there, or set DETECTRON2_DATASETS to "
            "the folder that holds the datasets."
        ) from error
    except ModuleNotFoundError as error:  # such as lvis
        package, fix = missing_package(error)
        raise DatasetError(f"{what} needs {package}, which is not installed. {fix}") from error
    except AssertionError as error:
        failed = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        raise DatasetError(f"{what}: {failed}") from error
