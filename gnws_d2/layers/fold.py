"""Plain convolutions in place of standardized ones, for deployment."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from .convert import plain_class
from .reversible import restore
from .ws_conv import StandardizedConv

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """A copy of ``model`` whose convolutions are plain, with the standardized weights stored, and
    whose GroupNorms and ReLUs are separate.

    It computes in evaluation mode what ``model`` computes, bit for bit (up to rounding where
    GroupNorms were fused), and knows nothing of this package. To train on, keep ``model``: the copy
    no longer has the weights that were trained.

    Args:
        model: any module; it stays as it is.

    Returns:
        A deep copy in evaluation mode, none of whose parameters asks for a gradient.
    """
    folded = restore(copy.deepcopy(model)).eval()
    for conv in folded.modules():
        if isinstance(conv, StandardizedConv):
            with torch.no_grad():
                conv.weight = nn.Parameter(conv.standardized_weight().clone())
            conv.__class__ = plain_class(conv)  # type: ignore[assignment]
            for name in ("_kept", "plain_class", "eps"):
                conv.__dict__.pop(name, None)
    return folded.requires_grad_(False)
