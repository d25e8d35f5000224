"""Outputs of pointwise convolutions that are computed again in backward.

GroupNorm keeps its input, which is the output of a convolution. Where that is a 1x1 convolution
with no more channels in than out, as at the end of a bottleneck block and in a shortcut, computing
it again takes little arithmetic for the memory it saves: what remains of a block is what it keeps
with frozen batch normalization.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import nn

from ..layers import StandardizedConv
from ..layers.rebuild import attach
from ..layers.reversible import change


def rebuild_pointwise(model: nn.Module) -> None:
    """Let the norms after these convolutions keep how their input was made, within
    :func:`~gnws_d2.layers.rebuild.rebuilding`; in place. Without Weight Standardization, these are
    the last convolutions of blocks only: Detectron2's others do not call what is changed here."""
    for conv in model.modules():
        if isinstance(conv, (StandardizedConv, Conv2d)) and _is_expanding(conv):
            change(conv, _conv_forward=functools.partial(_conv_forward, conv))


def _is_expanding(conv: Any) -> bool:
    return (
        isinstance(getattr(conv, "norm", None), nn.GroupNorm)
        and set(conv.kernel_size) == {1}
        and conv.groups == 1
        and conv.in_channels <= conv.out_channels
    )


def _conv_forward(
    conv: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    y = type(conv)._conv_forward(conv, x, weight, bias)
    # In evaluation mode another path standardizes, and rounds differently.
    if y.requires_grad and conv.training and not torch.compiler.is_compiling():
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        again = functools.partial(_again, conv, autocast, weight.requires_grad)
        attach(y, again, (x, weight) if bias is None else (x, weight, bias))
    return y


def _again(
    conv: Any,
    autocast: torch.dtype | None,
    trained: bool,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    weight.requires_grad_(trained)  # by which a convolution chooses how it standardizes
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        return type(conv)._conv_forward(conv, x, weight, bias)
