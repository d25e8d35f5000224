"""Plain layers in place of this package's own, for deployment."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from .batch_channel_norm import BatchChannelNorm2d
from .ws_conv import StandardizedConv

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """A copy of ``model`` whose convolutions are plain, with the standardized weights stored.

    It computes what ``model`` computes in evaluation mode, bit for bit, and contains no layer of
    this package: Batch-Channel Normalization becomes BatchNorm2d and GroupNorm. To train further,
    keep ``model``: the copy no longer has the weights that were trained.

    Args:
        model: any module; it is not changed.

    Returns:
        A deep copy in evaluation mode, none of whose parameters requires a gradient.

    Raises:
        ImportError: a ``WSConv2d`` was built with a norm or activation, and Detectron2, whose
            ``Conv2d`` takes them, is not installed.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        if isinstance(module, StandardizedConv):
            _fold_convolution(module)
        elif hasattr(module, "plain_class"):  # as this part is at inference
            module.__class__ = module.plain_class  # type: ignore[assignment]
            module._buffers.pop("estbn_moving_speed", None)
        for name, child in module.named_children():
            if isinstance(child, BatchChannelNorm2d):
                setattr(module, name, nn.Sequential(child.bn, _plain_group_norm(child)).eval())
    return folded.requires_grad_(False)


@torch.no_grad()
def _fold_convolution(conv: Any) -> None:
    conv.weight = nn.Parameter(conv.standardized_weight().clone())
    plain = conv.__dict__.get("plain_class") or next(
        c for c in type(conv).__mro__ if not issubclass(c, StandardizedConv)
    )
    if plain is nn.Conv2d and (conv.norm is not None or conv.activation is not None):
        from detectron2.layers import Conv2d  # torch's has neither

        plain = Conv2d
    conv.__class__ = plain
    for name in ("_kept", "plain_class", "eps"):
        conv.__dict__.pop(name, None)


def _plain_group_norm(norm: BatchChannelNorm2d) -> nn.GroupNorm:
    plain = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    plain.weight = nn.Parameter(norm.per_channel(norm.weight.detach()))
    plain.bias = nn.Parameter(norm.per_channel(norm.bias.detach()))
    return plain
