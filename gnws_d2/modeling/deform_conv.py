"""Detectron2's deformable convolutions with a standardized weight.

They compute with torchvision's operator, which takes the same offsets, also has gradients on the
CPU, and needs none of Detectron2's CUDA operators.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import DeformConv, ModulatedDeformConv
from torchvision.ops import deform_conv2d

from ..layers import StandardizedConv


class WSDeformConv(StandardizedConv, DeformConv):
    """``detectron2.layers.DeformConv`` with a standardized weight."""

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return _forward(self, x, offset, None, None)


class WSModulatedDeformConv(StandardizedConv, ModulatedDeformConv):
    """``detectron2.layers.ModulatedDeformConv`` with a standardized weight."""

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        bias: Any = self.bias
        return _forward(self, x, offset, mask, bias)


def _forward(
    conv: Any,
    x: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    weight = conv.standardized_weight()
    x = deform_conv2d(x, offset, weight, bias, conv.stride, conv.padding, conv.dilation, mask)
    if conv.norm is not None:
        x = conv.norm(x)
    return conv.activation(x) if conv.activation is not None else x
