"""Weight Standardization as others compute it, to compare with; and in float64, to check with.

Each formula takes a weight (C_out, C_in / groups, kh, kw) and gives a tensor of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

from gnws_d2.layers import StandardizedConv

Formula = Callable[[torch.Tensor], torch.Tensor]


def plain_formula(weight: torch.Tensor) -> torch.Tensor:
    """With plain operations and autograd's backward, as ``ConvWS2d`` of mmcv does at each forward:
    unbiased deviation, epsilon added to it."""
    flat = weight.flatten(1)
    mean = flat.mean(1).view(-1, 1, 1, 1)
    std = flat.std(1).view(-1, 1, 1, 1)
    return (weight - mean) / (std + 1e-5)


def timm_formula(weight: torch.Tensor) -> torch.Tensor:
    """By the batch normalization of torch, as ``StdConv2d`` of timm: biased variance, epsilon
    inside the root. Another operation: detectors trained with the one above need the one above."""
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).view_as(weight)


def plain_reference(weight: torch.Tensor) -> torch.Tensor:
    """What :func:`plain_formula` and this package compute, from the definition; for float64."""
    fan_in = weight[0].numel()
    centered = weight - weight.sum((1, 2, 3), keepdim=True) / fan_in
    variance = centered.square().sum((1, 2, 3), keepdim=True) / (fan_in - 1)
    return centered / (variance.sqrt() + 1e-5)


def timm_reference(weight: torch.Tensor) -> torch.Tensor:
    """What :func:`timm_formula` computes, from the definition; for float64."""
    fan_in = weight[0].numel()
    centered = weight - weight.sum((1, 2, 3), keepdim=True) / fan_in
    variance = centered.square().sum((1, 2, 3), keepdim=True) / fan_in
    return centered / (variance + 1e-6).sqrt()


class FormulaConv2d(Conv2d):
    """``detectron2.layers.Conv2d`` that applies ``formula`` to its weight at each forward."""

    formula: Formula

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.formula(self.weight)
        x = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x) if self.activation is not None else x


def use_formula(model: nn.Module, formula: Formula) -> None:
    """Let the standardized convolutions of ``model`` compute by ``formula`` instead; in place."""
    for conv in model.modules():
        if isinstance(conv, StandardizedConv):
            conv.__class__ = FormulaConv2d  # type: ignore[assignment]
            conv.formula = formula
