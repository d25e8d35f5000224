"""What produced a checkpoint, kept in the checkpoint itself."""

import pickle
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import get_key, portable_config
from ..files import write_checkpoint

ANCHORS = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
KEY = "gnws_d2"  # under which a checkpoint has it, beside "model"


def _versions() -> dict[str, str]:
    from .. import __version__

    return {
        "gnws_d2": __version__,
        "detectron2": detectron2.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Provenance:
    """What produced a checkpoint; None if unknown.

    Attributes:
        config: the config as YAML, see :func:`~gnws_d2.config.portable_config`.
        standardized: the parts of the model whose normalized convolutions are standardized.
        classes: the names of the classes, in the order of the predictor.
        category_ids: their ids in the annotations, in the same order.
        input_format: order of the channels, such as "RGB".
        pixel_mean, pixel_std: what is subtracted from a pixel and what it is divided by.
        anchors: the keys of the config with the sizes and aspect ratios of the anchors.
        score_threshold: the lowest score with which F1 was highest in validation; the report
            suggests it.
        source: the published file that it was converted from.
        versions: of gnws_d2, torch, Detectron2 and Python.
    """

    config: str | None = None
    standardized: list[str] | None = None
    classes: list[str] | None = None
    category_ids: list[int] | None = None
    input_format: str | None = None
    pixel_mean: list[float] | None = None
    pixel_std: list[float] | None = None
    anchors: dict[str, Any] | None = None
    score_threshold: float | None = None
    source: str | None = None
    versions: dict[str, str] = field(default_factory=_versions)

    @classmethod
    def of(cls, cfg: CfgNode, standardized: list[str], source: str | None = None) -> "Provenance":
        """The provenance of the model that ``cfg`` describes."""
        classes = _of_datasets(cfg, "thing_classes", "stuff_classes")
        to_class = _of_datasets(cfg, "thing_dataset_id_to_contiguous_id") or {}
        ids = sorted(to_class, key=to_class.__getitem__)
        return cls(
            config=portable_config(cfg).dump(),
            standardized=standardized,
            classes=list(cfg.DATASETS.get("CLASSES") or classes or []) or None,
            category_ids=list(cfg.DATASETS.get("CATEGORY_IDS") or ids) or None,
            input_format=cfg.INPUT.FORMAT,
            pixel_mean=[float(value) for value in cfg.MODEL.PIXEL_MEAN],
            pixel_std=[float(value) for value in cfg.MODEL.PIXEL_STD],
            anchors={key: get_key(cfg, key) for key in ANCHORS},
            source=source,
        )

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any]) -> "Provenance":
        """The provenance in ``checkpoint``; of one that another program wrote, what is certain."""
        meta = checkpoint.get("meta")
        meta = meta if isinstance(meta, Mapping) else {}
        stored = checkpoint.get(KEY, meta.get(KEY))
        if not isinstance(stored, Mapping):
            stored = _of_openmmlab(meta)
            if checkpoint.get("__author__"):  # Detectron2's zoo, and the programs before it
                stored["standardized"] = []
        known = {f.name: stored[f.name] for f in fields(cls) if f.name in stored}
        return cls(**{"versions": {}, **{n: v for n, v in known.items() if _has_type(n, v)}})

    @property
    def input(self) -> dict[str, Any]:
        """What a config with the same input and anchors has, by key."""
        pixels = {"MODEL.PIXEL_MEAN": self.pixel_mean, "MODEL.PIXEL_STD": self.pixel_std}
        return {"INPUT.FORMAT": self.input_format, **pixels, **(self.anchors or {})}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for :data:`KEY`."""
        return asdict(self)


def store_threshold(file: Path, threshold: float) -> None:
    """Write ``threshold`` into the provenance of a checkpoint that a :class:`Checkpointer` saved;
    the rest of it stays, bit for bit. A file with objects that torch does not load safely stays as
    it is."""
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return
    checkpoint[KEY]["score_threshold"] = threshold
    write_checkpoint(checkpoint, file)


def _of_datasets(cfg: CfgNode, *keys: str) -> Any:
    """The first value under one of ``keys`` in the metadata of the config's datasets."""
    names = [n for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if n in MetadataCatalog.list()]
    values = (MetadataCatalog.get(name).get(key) for name in names for key in keys)
    return next(filter(None, values), None)


_ELEMENTS: dict[str, Any] = {"standardized": str, "classes": str, "category_ids": (int, str)}


def _has_type(name: str, value: object) -> bool:
    """Whether a field can be used: a file may hold anything under this package's key."""
    if name in _ELEMENTS or name.startswith("pixel"):
        kind = _ELEMENTS.get(name, (int, float))
        return isinstance(value, list) and all(isinstance(element, kind) for element in value)
    if name == "score_threshold":
        return isinstance(value, float) and 0 <= value <= 1
    return isinstance(value, dict if name in ("versions", "anchors") else str)


def _of_openmmlab(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What MMEngine and, before it, mmcv store in ``meta``: classes, and the text of the config."""
    dataset = meta.get("dataset_meta")
    classes = meta.get("CLASSES")
    if isinstance(dataset, Mapping):
        classes = dataset.get("classes", dataset.get("CLASSES"))
    text = meta.get("cfg", meta.get("config"))
    is_plain = isinstance(text, str) and "model" in text and "ConvWS" not in text
    return {
        "classes": [str(name) for name in classes] if isinstance(classes, (list, tuple)) else None,
        "standardized": [] if is_plain else None,
    }
