"""Recompute activations in backward instead of keeping them.

GroupNorm + ReLU keeps its input, and the convolution after it keeps its output: two tensors, of
which the second follows from the first. Within :func:`recomputing`, an operation that would keep a
result with a recipe keeps the recipe instead: a function, and the tensors it starts from, which are
kept anyway. It costs one more pass over the activation in backward; the gradients are the same bit
for bit.

:func:`recompute_pointwise` extends this to the input of GroupNorm, where it is the output of a 1x1
convolution with no more input than output channels, as at the end of a bottleneck block and in a
shortcut: little arithmetic for the memory it saves. A block then keeps what it keeps with frozen
batch normalization.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from gnws_d2.layers import StandardizedConv


class _Kept(NamedTuple):
    """A tensor and its version. With hooks, autograd does not check for edits itself."""

    tensor: torch.Tensor
    version: int


class _Recipe(NamedTuple):
    """``function(*kept, *numbers)`` computes the activation at its ``version`` again. Its inputs
    may be recomputed in turn."""

    version: int
    function: Callable[..., torch.Tensor]
    kept: tuple[_Recipe | _Kept, ...]
    numbers: tuple[float, ...]


def attach_recipe(
    activation: torch.Tensor,
    function: Callable[..., torch.Tensor],
    tensors: tuple[torch.Tensor, ...],
    *numbers: float,
) -> None:
    """Recompute ``activation`` as ``function(*tensors, *numbers)`` where backward needs it and the
    operation that takes it runs within :func:`recomputing`."""
    recipe = _Recipe(activation._version, function, tuple(map(_pack, tensors)), numbers)
    activation._recipe = recipe  # type: ignore[attr-defined]


def recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, whose operations keep recipes in place of the activations that have one. A
    module whose ``forward`` is replaced by it can be copied and pickled."""
    return functools.partial(_recomputing, forward)


def _recomputing(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return forward(*args, **kwargs)
    with saved_tensors_hooks(_pack, _unpack):
        return forward(*args, **kwargs)


def _pack(tensor: torch.Tensor) -> _Recipe | _Kept:
    recipe = getattr(tensor, "_recipe", None)
    # After an edit in place, the recipe no longer computes the activation.
    if recipe is not None and recipe.version == tensor._version:
        return recipe
    # Detached, so that no part of the graph is held beyond its backward.
    return _Kept(tensor.detach(), tensor._version)


def _unpack(packed: _Recipe | _Kept) -> torch.Tensor:
    if isinstance(packed, _Recipe):
        with torch.no_grad():
            return packed.function(*map(_unpack, packed.kept), *packed.numbers)
    tensor, version = packed
    if tensor._version != version:
        raise RuntimeError(
            f"A tensor of shape {tuple(tensor.shape)} that backward needs was modified in place "
            f"after the forward: its version is {tensor._version}, and was {version}. Modify a "
            "copy, or modify it after backward."
        )
    return tensor


def recompute_pointwise(model: nn.Module) -> None:
    """Let the norms after such 1x1 convolutions recompute their input, within :func:`recomputing`;
    in place. Without Weight Standardization this reaches only the last convolutions of blocks:
    Detectron2's own convolution does not call ``_conv_forward``."""
    for conv in model.modules():
        if isinstance(conv, (StandardizedConv, Conv2d)) and _is_expanding(conv):
            conv._conv_forward = functools.partial(_conv_forward, conv)  # type: ignore[method-assign]


def _is_expanding(conv: Any) -> bool:
    return (
        isinstance(getattr(conv, "norm", None), nn.GroupNorm)
        and set(conv.kernel_size) == {1}
        and conv.groups == 1
        and conv.in_channels <= conv.out_channels
    )


def _conv_forward(
    conv: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    y = type(conv)._conv_forward(conv, x, weight, bias)
    # Evaluation mode standardizes by another path, which rounds differently.
    if y.requires_grad and conv.training and not torch.compiler.is_compiling():
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        again = functools.partial(_convolve_again, conv, autocast, weight.requires_grad)
        attach_recipe(y, again, (x, weight) if bias is None else (x, weight, bias))
    return y


def _convolve_again(
    conv: Any,
    autocast: torch.dtype | None,
    trained: bool,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    weight.requires_grad_(trained)  # a convolution chooses by it how it standardizes
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        return type(conv)._conv_forward(conv, x, weight, bias)
