"""Weight Standardization as others compute it, to compare with.

Each formula takes a weight (C_out, C_in / groups, kh, kw) and returns a tensor of the same shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gnws_d2.layers import StandardizedConv

Formula = Callable[[torch.Tensor], torch.Tensor]


def plain_formula(weight: torch.Tensor) -> torch.Tensor:
    """Plain operations and autograd's backward, as ``ConvWS2d`` of mmcv at each forward: unbiased
    deviation, epsilon added to it. In float64 it is the reference for this package."""
    flat = weight.flatten(1)
    mean = flat.mean(1).view(-1, 1, 1, 1)
    std = flat.std(1).view(-1, 1, 1, 1)
    return (weight - mean) / (std + 1e-5)


def timm_formula(weight: torch.Tensor) -> torch.Tensor:
    """PyTorch's batch normalization, as ``StdConv2d`` of timm: biased variance, epsilon inside the
    root. Other results: detectors trained with the formula above need the formula above."""
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).view_as(weight)


def use_formula(model: nn.Module, formula: Formula) -> None:
    """Make the standardized convolutions of ``model`` compute ``formula`` at each forward instead,
    in place."""
    for conv in model.modules():
        if isinstance(conv, StandardizedConv):
            conv._conv_forward = functools.partial(_forward, conv, formula)


def _forward(
    conv: Any, formula: Formula, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return nn.Conv2d._conv_forward(conv, x, formula(weight), bias)
