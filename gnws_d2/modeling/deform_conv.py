"""Deformable convolutions on torchvision's operator, with and without a standardized weight.

Detectron2's own need its compiled part, ``detectron2._C``, and without it are placeholders that
raise. Importing this module then replaces them by :class:`DeformConv`, so that
``MODEL.RESNETS.DEFORM_ON_PER_STAGE`` works with every builder.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2 import layers
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import resnet
from torch import nn
from torchvision.ops import deform_conv2d

from ..layers import StandardizedConv


class DeformConv(Conv2d):
    """``detectron2.layers.DeformConv`` and ``ModulatedDeformConv`` on torchvision's operator.

    Parameters have the same names and shapes. Any module of those classes can become one of this
    class in place.

    Args:
        args, kwargs: of ``detectron2.layers.Conv2d``.
        deformable_groups: groups of input channels with offsets of their own.
    """

    def __init__(self, *args: Any, deformable_groups: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deformable_groups = deformable_groups
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(
        self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Convolve at displaced positions.

        Args:
            x: N x C x H x W.
            offset: N x (2 * deformable_groups * kernel height * width) x H' x W', in pixels, (y, x)
                for each position of the kernel.
            mask: N x (deformable_groups * kernel height * width) x H' x W', the factor of each
                position (Deformable ConvNets v2); None is 1.
        """
        weight = self._weight()
        x = deform_conv2d(
            x, offset, weight, self.bias, self.stride, self.padding, self.dilation, mask
        )
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x) if self.activation is not None else x

    def _weight(self) -> torch.Tensor:
        return self.weight

    def extra_repr(self) -> str:
        # torch's needs attributes that Detectron2's deformable convolutions lack
        names = "in_channels out_channels kernel_size stride padding dilation groups"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names.split())


class WSDeformConv(StandardizedConv, DeformConv):
    """:class:`DeformConv` with a standardized weight."""

    def _weight(self) -> torch.Tensor:
        return self.standardized_weight()


DEFORM_CONVS = (DeformConv, layers.DeformConv, layers.ModulatedDeformConv)

if not issubclass(layers.DeformConv, nn.Module):
    resnet.DeformConv = resnet.ModulatedDeformConv = DeformConv
