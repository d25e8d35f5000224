"""Errors of datasets, which name the file, what was found and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import META_ARCHITECTURE
from ..errors import GnwsError


class DatasetError(GnwsError, ValueError):
    """A dataset that cannot be read, or does not fit the config."""


@contextmanager
def dataset_errors(cfg: CfgNode, names: Sequence[str]) -> Iterator[None]:
    """Wrap the loading of registered datasets: what fails to load, or loads with more classes
    than the model has, raises DatasetError."""
    for name in names:
        if name not in DatasetCatalog.list():
            raise DatasetError(
                f"DATASETS names {name!r}, which is not registered. Registered are: "
                f"{', '.join(sorted(DatasetCatalog.list()))}. Register yours, for example with "
                "detectron2.data.datasets.register_coco_instances, before training starts."
            )
    where = ", ".join(MetadataCatalog.get(name).get("json_file") or name for name in names)
    try:
        yield
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{where} is not valid JSON ({error}): it is damaged or cut off. Fetch it again."
        ) from error
    except FileNotFoundError as error:
        raise DatasetError(
            f"dataset {', '.join(names)}: {error.filename} does not exist. Put it there, or set "
            "DETECTRON2_DATASETS to the folder that holds the datasets."
        ) from error
    except KeyError as error:
        key = str(error.args[0])
        found = key if " " in key else f"{key!r} is missing in it."  # Detectron2 raises sentences
        raise DatasetError(
            f"{where} is not a COCO annotation file: {found} Export it as COCO JSON."
        ) from error
    except AssertionError as error:
        raise DatasetError(f"{where}: {error}") from error
    for name in names:
        _check_classes(cfg, name)


class NamingMapper:
    """A dataset mapper whose errors name the image, which Pillow's do not.

    Args:
        mapper: maps a dict in Detectron2's dataset format.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        try:
            return self._mapper(record)
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(
                f"{record['file_name']} cannot be used ({error}). Restore the image, or remove "
                "it and its annotations from the dataset."
            ) from error


def _check_classes(cfg: CfgNode, name: str) -> None:
    built = cfg.MODEL.META_ARCHITECTURE
    if built == META_ARCHITECTURE:  # see through the wrapper
        built = cfg.MODEL.WS.META_ARCHITECTURE
    section, kind = {
        "GeneralizedRCNN": ("ROI_HEADS", "thing_classes"),
        "PanopticFPN": ("ROI_HEADS", "thing_classes"),
        "RetinaNet": ("RETINANET", "thing_classes"),
        "SemanticSegmentor": ("SEM_SEG_HEAD", "stuff_classes"),
    }.get(built, ("", ""))
    if not section:
        return
    classes = MetadataCatalog.get(name).get(kind) or []
    if len(classes) > cfg.MODEL[section].NUM_CLASSES:
        raise DatasetError(
            f"dataset {name} has {len(classes)} classes, but MODEL.{section}.NUM_CLASSES is "
            f"{cfg.MODEL[section].NUM_CLASSES}. Set it to {len(classes)}."
        )
