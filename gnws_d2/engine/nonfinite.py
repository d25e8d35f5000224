"""Which module makes a loss infinite or NaN."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def nonfinite_module_named(model: nn.Module) -> Iterator[None]:
    """Add the module it comes from to a FloatingPointError of the block, a training step.

    The block's calls of ``model`` are kept with their random state and precision, and repeated
    only after the error.
    """
    calls: list[Callable[[], object]] = []
    device = next(model.parameters()).device.type
    rng = torch.cuda if device == "cuda" else torch

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        state = rng.get_rng_state()
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

        def repeat() -> None:
            rng.set_rng_state(state)
            with torch.autocast(device, dtype, enabled):
                module(*args, **kwargs)

        calls.append(repeat)

    try:
        with model.register_forward_pre_hook(keep, with_kwargs=True):
            yield
    except FloatingPointError as error:
        where = first_nonfinite_module(model, calls)
        raise FloatingPointError(f"{error}\n{where}") from error


@torch.no_grad()
def first_nonfinite_module(model: nn.Module, calls: list[Callable[[], object]]) -> str:
    """Name the first module whose output, or else the parameter, is not finite.

    Args:
        model: in training mode, its parameters those of the failed step.
        calls: each repeats one of the forwards of the step.

    Returns:
        A sentence for an error message.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"The parameter {name} is not finite: an earlier step made it so."
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not _finite(output):
            found.append(name)

    try:
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.enter_context(module.register_forward_hook(functools.partial(look, name)))
            for call in calls:
                call()
    except Exception as error:  # the forward may itself refuse what is not finite
        found.append(f"{type(error).__name__}: {error}")
    if not found:
        return "All outputs are finite when this process repeats the step."
    return f"The first output that is not finite is that of {found[0]!r}."


def _finite(output: Any) -> bool:
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return all(map(_finite, output))
    return not isinstance(output, torch.Tensor) or bool(output.isfinite().all())
