"""LazyConfigs and datasets that are COCO files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

import gnws_d2

from .fit import fit_to_data
from .source import is_source


def name_data(cfg: Any, splits: Mapping[str, Sequence[str]], eval_only: bool) -> None:
    """Let ``cfg`` train and evaluate on the datasets that the command line names.

    Args:
        splits: names for "train", "val" and "test"; an evaluation prefers the latter.
    """
    tested = splits["test"] if eval_only and splits["test"] else splits["val"]
    if splits["train"] and not eval_only:
        cfg.dataloader.train.dataset.names = list(splits["train"])
    if tested:
        cfg.dataloader.test.dataset.names = list(tested)
        cfg.dataloader.evaluator.dataset_name = tested[0]


def fit_lazy_config(cfg: Any) -> None:
    """Register the COCO files among the datasets of ``cfg``, check them, and give the model their
    number of classes and the mapper the format of their masks.

    Raises:
        DatasetError: see :func:`~gnws_d2.data.fit_to_data`.
    """
    train = _names(cfg.dataloader.train.dataset.names)
    test = _names(cfg.dataloader.test.dataset.names)
    if not any(map(is_source, (*train, *test))):
        return
    opts = ["DATASETS.TRAIN", repr(train), "DATASETS.TEST", repr(test), "MODEL.MASK_ON", "True"]
    fitted = fit_to_data(gnws_d2.load_config("", opts))
    for node in _with_classes(cfg.model):
        node.num_classes = len(fitted.DATASETS.CLASSES)
    mapper = cfg.dataloader.train.mapper
    if "instance_mask_format" in mapper:
        mapper.instance_mask_format = fitted.INPUT.MASK_FORMAT


def _names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _with_classes(node: Any) -> Iterator[DictConfig]:
    """The parts of a model that state a number of classes, but not by way of another part."""
    if isinstance(node, DictConfig):
        if "num_classes" in node and not OmegaConf.is_interpolation(node, "num_classes"):
            yield node
        for name in node:
            if not OmegaConf.is_interpolation(node, name):
                yield from _with_classes(node[name])
    elif isinstance(node, ListConfig):
        for child in node:
            yield from _with_classes(child)
