"""Changes of a model's modules in place that can be taken back."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)

_BEFORE = "_before_change"


class _OfClass:
    """Stands for the value of an attribute that the module had from its class."""


def change(module: nn.Module, **attributes: Any) -> None:
    """Set ``attributes`` of ``module``, of which ``__class__`` may be one."""
    before = module.__dict__.setdefault(_BEFORE, {})
    for name, value in attributes.items():
        own = name == "__class__" or any(
            name in of_kind for of_kind in (module.__dict__, module._modules, module._parameters)
        )
        before.setdefault(name, getattr(module, name) if own else _OfClass)
        setattr(module, name, value)


def restore(model: Model) -> Model:
    """Take back in place what :func:`change` did to ``model`` and the modules in it."""
    for module in list(model.modules()):
        for name, value in module.__dict__.pop(_BEFORE, {}).items():
            if value is _OfClass:  # which may change as well
                delattr(module, name)
            else:
                setattr(module, name, value)
    return model
