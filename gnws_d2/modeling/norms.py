"""Batch-Channel Normalization as a value of any NORM key of Detectron2's configs."""

import copy
import functools
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import CycleBatchNormList
from torch import nn

from ..config import leaves, set_key
from ..layers import BatchChannelNorm2d

# What Detectron2's ``get_norm`` takes: a name, or what makes the layer for a number of channels.
Norm = str | Callable[[int], nn.Module]

BCN_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BCN": BatchChannelNorm2d,
    "SyncBCN": functools.partial(BatchChannelNorm2d, sync=True),
    "EstBCN": functools.partial(BatchChannelNorm2d, estimate=True),
    "SyncEstBCN": functools.partial(BatchChannelNorm2d, estimate=True, sync=True),
}


def norm_layer(norm: Norm) -> Norm:
    """``norm`` for Detectron2's ``get_norm``, which knows a fixed set of names but also takes a
    callable: the layer itself of a name in :data:`BCN_NORMS`, and anything else unchanged."""
    return BCN_NORMS.get(norm, norm) if isinstance(norm, str) else norm


def with_norm_layers(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` to build a model from, in which every NORM key of MODEL that names one of
    :data:`BCN_NORMS` holds the layer itself."""
    cfg = cfg.clone()
    for key, value in list(leaves(cfg.MODEL)):
        if key.endswith(".NORM"):
            norm = norm_layer(value)
            if key == "RETINANET.NORM" and callable(norm):
                levels = len(cfg.MODEL.RETINANET.IN_FEATURES)
                norm = functools.partial(_with_levels, norm, levels)
            set_key(cfg.MODEL, key, norm)
    return cfg


def _with_levels(norm: Any, levels: int, channels: int) -> nn.Module:
    """Batch-Channel Normalization for a head that all levels of a pyramid share: each has its own
    statistics, and all have the same parameters, as Detectron2 has it for BN."""
    layer = norm(channels)
    bn = layer.bn
    bn.affine, bn.weight, bn.bias = False, None, None  # those of the list
    layer.bn = CycleBatchNormList(levels, lambda **_: copy.deepcopy(bn), num_features=channels)
    return layer
