"""Activations that are computed again in backward instead of being kept for it.

GroupNorm + ReLU keeps its input, and the convolution after it keeps its output: two tensors, of
which one follows from the other. Within :func:`rebuilding`, what an operation would keep of a
result that carries a recipe is replaced by the recipe: the tensors it was made from, which are kept
anyway, and how. One more pass over the activation in backward, the same gradients bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks


class _Kept(NamedTuple):
    """A tensor as it was. Where there are hooks, autograd itself does not look whether it was
    edited since."""

    tensor: torch.Tensor
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Kept:
        # Detached, so that no part of the graph is held beyond its backward.
        return cls(tensor.detach(), tensor._version)

    def get(self) -> torch.Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that backward needs was modified in "
                f"place after the forward: its version is {self.tensor._version}, and was "
                f"{self.version}. Modify a copy, or modify it after backward."
            )
        return self.tensor


class _Recipe(NamedTuple):
    """``function(*kept, *numbers)`` gives the activation at its ``version`` again. What it is made
    from may be made again itself."""

    version: int
    function: Callable[..., torch.Tensor]
    kept: tuple[_Recipe | _Kept, ...]
    numbers: tuple[float, ...]


def attach(
    activation: torch.Tensor,
    function: Callable[..., torch.Tensor],
    tensors: tuple[torch.Tensor, ...],
    *numbers: float,
) -> None:
    """Let ``activation`` be computed by ``function(*tensors, *numbers)`` where it is needed in
    backward and its consumers are run within :func:`rebuilding`."""
    recipe = _Recipe(activation._version, function, tuple(map(_pack, tensors)), numbers)
    activation._recipe = recipe  # type: ignore[attr-defined]


def rebuilding(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, whose operations keep the recipes of activations that have one. A module whose
    ``forward`` was replaced by it can be copied and pickled."""
    return functools.partial(_rebuilding, forward)


def _rebuilding(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return forward(*args, **kwargs)
    with saved_tensors_hooks(_pack, _unpack):
        return forward(*args, **kwargs)


def _pack(tensor: torch.Tensor) -> _Recipe | _Kept:
    recipe = getattr(tensor, "_recipe", None)
    # Edited in place, an activation is no longer what its recipe gives.
    if recipe is not None and recipe.version == tensor._version:
        return recipe
    return _Kept.of(tensor)


def _unpack(packed: _Recipe | _Kept) -> torch.Tensor:
    if isinstance(packed, _Kept):
        return packed.get()
    with torch.no_grad():
        return packed.function(*map(_unpack, packed.kept), *packed.numbers)
