"""Deformable convolutions on torchvision's operator, with and without a standardized weight.

Detectron2's own need its compiled part, ``detectron2._C``. Without it they are placeholders that
raise, and the backbones of this package use :class:`DeformConv`.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2 import layers
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock
from torch import nn
from torchvision.ops import deform_conv2d

from ..layers import StandardizedConv


class DeformConv(Conv2d):
    """``detectron2.layers.DeformConv`` and ``ModulatedDeformConv`` on torchvision's operator.

    It takes the arguments of ``detectron2.layers.Conv2d``. Its parameters have the names and shapes
    of Detectron2's; a module of those classes can become one of this class in place.
    """

    def forward(
        self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Convolve at displaced positions.

        Args:
            x: (N, C, H, W).
            offset: (N, 2 * groups * kernel height * kernel width, H', W'), in pixels, (y, x) for
                each position of the kernel. Each group of input channels has its own offsets.
            mask: (N, groups * kernel height * kernel width, H', W'), the factor of each position
                (Deformable ConvNets v2); None is 1.
        """
        weight = self.standardized_weight() if isinstance(self, StandardizedConv) else self.weight
        x = deform_conv2d(
            x, offset, weight, self.bias, self.stride, self.padding, self.dilation, mask
        )
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x) if self.activation is not None else x

    def extra_repr(self) -> str:
        # torch's needs attributes that Detectron2's deformable convolutions lack
        names = "in_channels out_channels kernel_size stride padding dilation groups"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names.split())


class WSDeformConv(StandardizedConv, DeformConv):
    """:class:`DeformConv` with a standardized weight."""


DEFORM_CONVS = (DeformConv, layers.DeformConv, layers.ModulatedDeformConv)


def build_deformable(
    build: Callable[[CfgNode, ShapeSpec], Backbone], cfg: CfgNode, input_shape: ShapeSpec
) -> Any:
    """``build(cfg, input_shape)`` of a backbone with a ResNet. Its deformable convolutions are
    :class:`DeformConv` if Detectron2 has none of its own."""
    resnets = cfg.MODEL.RESNETS
    is_compiled = issubclass(layers.DeformConv, nn.Module)
    if is_compiled or resnets.DEPTH < 50:  # whose blocks cannot be deformable
        return build(cfg, input_shape)
    cfg = cfg.clone()
    cfg.MODEL.RESNETS["DEFORM_ON_PER_STAGE"] = [False] * 4
    backbone: Any = build(cfg, input_shape)
    stages = getattr(backbone, "bottom_up", backbone).stages  # those that are used
    for stage, is_deformable in zip(stages, resnets.DEFORM_ON_PER_STAGE, strict=False):
        for block in stage if is_deformable else ():
            _make_deformable(block, resnets.DEFORM_MODULATED, resnets.DEFORM_NUM_GROUPS)
    return backbone


def _make_deformable(block: Any, modulated: bool, groups: int) -> None:
    """Turn a ``BottleneckBlock`` into the ``DeformBottleneckBlock`` that Detectron2 would build, in
    place. Its offsets start at 0; its other parameters stay as they are."""
    conv2, conv3 = block.conv2, block.conv3
    channels = (3 if modulated else 2) * 3 * 3 * groups
    geometry = (conv2.kernel_size, conv2.stride, conv2.padding, conv2.dilation)
    offset = Conv2d(conv2.in_channels, channels, *geometry)
    nn.init.zeros_(offset.weight)
    nn.init.zeros_(offset.bias)
    offset.requires_grad_(conv2.weight.requires_grad)  # not in a frozen stage
    # In Detectron2's order, by which optimizers save their state.
    del block.conv2, block.conv3
    block.conv2_offset, block.conv2, block.conv3 = offset, conv2, conv3
    block.deform_modulated = modulated
    conv2.__class__, block.__class__ = DeformConv, DeformBottleneckBlock
