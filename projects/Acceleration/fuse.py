"""Fuse GroupNorm and ReLU in Detectron2's own modules, which keep their parameters and names."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn

from gnws_d2.layers import StandardizedConv
from gnws_d2.modeling.deform_conv import DEFORM_CONVS

from .fused_group_norm import GroupNormReLU
from .recompute import recompute_pointwise, recomputing

_CONVS = (Conv2d, *DEFORM_CONVS, StandardizedConv)
_RELUS = (F.relu, F.relu_, torch.relu)


def fuse_norm_relu(
    model: nn.Module, recompute_activations: bool = False, recompute_convolutions: bool = False
) -> nn.Module:
    """Make every GroupNorm that a ReLU follows compute both, in place.

    This reaches the norms of the stem and of the residual blocks (the last norm of a block with the
    addition of the shortcut), of convolutions with ``activation=F.relu`` or ``nn.ReLU()``, and
    before an ``nn.ReLU`` in an ``nn.Sequential``. It leaves blocks of other classes alone, such as
    the deformable one, and GroupNorm without a ReLU, as in shortcuts and in FPN.

    Args:
        model: any Detectron2 model, or a backbone; standardize it before.
        recompute_activations: recompute in backward what a convolution or a pooling needs of the
            results, instead of keeping both them and the inputs of GroupNorm. The results of
            residual blocks, which several layers take, are kept.
        recompute_convolutions: the same, and also recompute what GroupNorm needs of the outputs of
            1x1 convolutions with no more input than output channels.

    Returns:
        ``model``, so that a LazyConfig can say ``LazyCall(fuse_norm_relu)(model=...)``.
    """
    for module in list(model.modules()):
        if type(module) in _FUSED:
            _fuse_block(module)
        elif isinstance(module, _CONVS):
            _fuse_activation(module)
        elif type(module) is nn.Sequential:
            _fuse_sequence(module)
    if recompute_activations or recompute_convolutions:
        for child in model.children():
            norms = [m for m in child.modules() if isinstance(m, GroupNormReLU)]
            for norm in norms:
                norm.recompute = True
            if norms:
                child.forward = recomputing(child.forward)
    if recompute_convolutions:
        recompute_pointwise(model)
    return model


def count_fused(model: nn.Module) -> tuple[int, int]:
    """How many GroupNorms of ``model`` are fused with a ReLU, and how many there are."""
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    return sum(isinstance(norm, GroupNormReLU) for norm in norms), len(norms)


def _fuse_block(block: Any) -> None:
    convs = [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
    if all(_is_plain(conv.norm) and conv.activation is None for conv in convs):
        for conv in convs:
            conv.norm.__class__ = GroupNormReLU
        block.__class__ = _FUSED[type(block)]


def _fuse_activation(conv: Any) -> None:
    norm, activation = getattr(conv, "norm", None), getattr(conv, "activation", None)
    if _is_plain(norm) and (activation in _RELUS or isinstance(activation, nn.ReLU)):
        norm.__class__ = GroupNormReLU
        conv.activation = None


def _fuse_sequence(sequence: nn.Sequential) -> None:
    for (_, norm), (name, relu) in itertools.pairwise(list(sequence.named_children())):
        if _is_plain(norm) and isinstance(relu, nn.ReLU):
            norm.__class__ = GroupNormReLU
            setattr(sequence, name, nn.Identity())


def _is_plain(norm: Any) -> bool:
    return type(norm) is nn.GroupNorm and norm.affine


class FusedBasicStem(BasicStem):
    """Detectron2's stem, whose norm includes the ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class FusedBasicBlock(BasicBlock):
    """Detectron2's block of two convolutions, whose norms include the ReLUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _add(self, self.conv2, self.conv1(x), x)


class FusedBottleneckBlock(BottleneckBlock):
    """Detectron2's block of three convolutions, whose norms include the ReLUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _add(self, self.conv3, self.conv2(self.conv1(x)), x)


def _add(block: Any, last: Any, inner: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    shortcut = x if block.shortcut is None else block.shortcut(x)
    # Bypasses the convolution's own forward, which would call its norm without the shortcut.
    return last.norm(last._conv_forward(inner, last.weight, last.bias), shortcut)


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BasicStem: FusedBasicStem,
    BasicBlock: FusedBasicBlock,
    BottleneckBlock: FusedBottleneckBlock,
}
