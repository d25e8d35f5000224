"""Batch-Channel Normalization as a value of any NORM key of Detectron2's configs."""

from __future__ import annotations

import functools
from collections.abc import Callable

from detectron2.config import CfgNode
from torch import nn

from .layers import BatchChannelNorm2d

# Name in a config -> the layer for a number of channels.
BCN_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BCN": BatchChannelNorm2d,
    "SyncBCN": functools.partial(BatchChannelNorm2d, sync=True),
    "EstBCN": functools.partial(BatchChannelNorm2d, estimate=True),
    "SyncEstBCN": functools.partial(BatchChannelNorm2d, estimate=True, sync=True),
}


def with_norm_layers(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg``, to build a model from, in which each NORM key of MODEL that names one of
    BCN_NORMS holds the layer itself.

    Detectron2's builders hand NORM to ``detectron2.layers.get_norm``, which knows a fixed set of
    names, but takes a callable as well.
    """
    cfg = cfg.clone()
    _name_to_layer(cfg.MODEL)
    return cfg


def _name_to_layer(node: CfgNode) -> None:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _name_to_layer(value)
        elif key == "NORM" and value in BCN_NORMS:
            # By item: a CfgNode's attributes are checked to be of a type that YAML can hold.
            node[key] = BCN_NORMS[value]
