"""Which module makes a loss infinite or NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )

        def repeat() -> None:
            rng.set_rng_state(state)
            with autocast:
                module(*args, **kwargs)

        calls.append(repeat)

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    except FloatingPointError as error:
        hook.remove()  # or the repeated calls are kept as well
        where = first_nonfinite_module(model, calls)
        raise FloatingPointError(f"{error}\n{where}") from error
    finally:
        hook.remove()


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
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: (
                found.append(name) if not _finite(output) else None
            )
        )
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            for call in calls:
                call()
    except Exception as error:  # the forward may itself refuse what is not finite
        found.append(f"{type(error).__name__}: {error}")
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return "All outputs are finite when this process repeats the step."
    return f"The first output that is not finite is that of {found[0]!r}."


def _finite(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return bool(output.isfinite().all())
    if isinstance(output, dict):
        return all(map(_finite, output.values()))
    if isinstance(output, (list, tuple)):
        return all(map(_finite, output))
    return True
