"""Channels last: the memory format in which tensor cores, and oneDNN on CPUs, compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def use_channels_last(model: nn.Module) -> None:
    """Store the weights of ``model`` with the channels as the fastest dimension, in place, and give
    its backbone the batch in the same format; from there convolutions and norms hand it on.

    Values, shapes and names stay; so does the state dict, which loads into either format.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone: Any = model.backbone
    backbone.register_forward_pre_hook(_batch_channels_last)


def _batch_channels_last(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return args[0].contiguous(memory_format=torch.channels_last), *args[1:]
