"""Train a LazyConfig on COCO files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetMapper
from omegaconf import DictConfig, ListConfig, OmegaConf

import gnws_d2
from gnws_d2.data import Mapper

from .fit import fit_to_data
from .source import is_source


def name_data(cfg: Any, splits: Mapping[str, Sequence[str]], eval_only: bool) -> None:
    """Set the datasets of ``cfg`` that the command line names.

    Args:
        splits: names for "train", "val" and "test", see :func:`~.arguments.data_splits`.
        eval_only: only evaluate, on the test images if there are any.
    """
    tested = splits["test"] if eval_only and splits["test"] else splits["val"]
    if splits["train"] and not eval_only:
        cfg.dataloader.train.dataset.names = list(splits["train"])
    if tested:
        cfg.dataloader.test.dataset.names = list(tested)
        cfg.dataloader.evaluator.dataset_name = tested[0]


def fit_lazy_config(cfg: Any) -> None:
    """Register and check the COCO files among the datasets of ``cfg``, and set the model's number
    of classes, the mapper's mask format, and :class:`~gnws_d2.data.Mapper` for Detectron2's.

    Raises:
        DatasetError: see :func:`~.fit.fit_to_data`.
    """
    named = cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names
    train, test = ((n,) if isinstance(n, str) else tuple(n) for n in named)
    if not any(map(is_source, (*train, *test))):
        return
    opts = ["DATASETS.TRAIN", repr(train), "DATASETS.TEST", repr(test), "MODEL.MASK_ON", "True"]
    fitted = fit_to_data(gnws_d2.load_config("", opts))
    for node in _with_classes(cfg.model):
        node.num_classes = len(fitted.DATASETS.CLASSES)
    for mapper in (cfg.dataloader.train.mapper, cfg.dataloader.test.mapper):
        if "instance_mask_format" in mapper:
            mapper.instance_mask_format = fitted.INPUT.MASK_FORMAT
        if mapper.get("_target_") is DatasetMapper:
            mapper._target_ = Mapper  # which reads 16 bits, and names the image in its errors


def _with_classes(node: Any) -> Iterator[DictConfig]:
    """The parts of a model that define a number of classes; some interpolate that of another."""
    if isinstance(node, DictConfig):
        if "num_classes" in node and not OmegaConf.is_interpolation(node, "num_classes"):
            yield node
        for name in node:
            if not OmegaConf.is_interpolation(node, name):
                yield from _with_classes(node[name])
    elif isinstance(node, ListConfig):
        for child in node:
            yield from _with_classes(child)
