"""Detectron2's deformable convolutions with a standardized weight."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.layers.deform_conv import deform_conv, modulated_deform_conv

from ..layers import StandardizedConv


class WSDeformConv(StandardizedConv, DeformConv):
    """``detectron2.layers.DeformConv`` with a standardized weight."""

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return super().forward(x, offset)  # uses the shape of the weight alone
        x = deform_conv(
            *(x, offset, self.standardized_weight()),
            *(self.stride, self.padding, self.dilation, self.groups, self.deformable_groups),
        )
        return _norm_and_activation(self, x)


class WSModulatedDeformConv(StandardizedConv, ModulatedDeformConv):
    """``detectron2.layers.ModulatedDeformConv`` with a standardized weight."""

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return super().forward(x, offset, mask)  # uses the shape of the weight alone
        x = modulated_deform_conv(
            *(x, offset, mask, self.standardized_weight(), self.bias),
            *(self.stride, self.padding, self.dilation, self.groups, self.deformable_groups),
        )
        return _norm_and_activation(self, x)


def _norm_and_activation(conv: Any, x: torch.Tensor) -> torch.Tensor:
    if conv.norm is not None:
        x = conv.norm(x)
    return conv.activation(x) if conv.activation is not None else x
