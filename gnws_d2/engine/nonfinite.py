"""Where a loss that became infinite or NaN comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def first_nonfinite_module(model: nn.Module, repeat: Callable[[], object]) -> str:
    """Repeat the forward of a step and name the first module whose output, or else the parameter,
    is not finite.

    Args:
        model: in training mode, its parameters those of the failed step.
        repeat: runs the model on what the step ran it on, with the same random numbers.

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
            repeat()
    except Exception as error:  # the forward may itself refuse what is not finite
        found.append(f"{type(error).__name__}: {error}")
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return "All outputs are finite when the step is repeated."
    return f"The first output that is not finite is that of {found[0]!r}."


def _finite(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return bool(output.isfinite().all())
    if isinstance(output, dict):
        return all(map(_finite, output.values()))
    if isinstance(output, (list, tuple)):
        return all(map(_finite, output))
    return True
