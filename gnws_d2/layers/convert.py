"""Weight Standardization and Group Normalization for a ``torch.nn.Module`` built without them.

A convolution is standardized when a norm follows it: its scale and offset then do not matter, which
is what the paper relies on.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .ws_conv import (
    StandardizedConv,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
)

Model = TypeVar("Model", bound=nn.Module)

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# A class, and what a module of it becomes; also a subclass that computes as its parent does.
STANDARDIZED: dict[type[nn.Module], type[StandardizedConv]] = {
    nn.Conv1d: WSConv1d,
    nn.Conv2d: WSConv2d,
    nn.Conv3d: WSConv3d,
    nn.ConvTranspose1d: WSConvTranspose1d,
    nn.ConvTranspose2d: WSConvTranspose2d,
    nn.ConvTranspose3d: WSConvTranspose3d,
}
MAX_GROUPS = 32


@dataclass(frozen=True)
class Change:
    """What became of one module.

    Attributes:
        name: of the module in its model.
        kind: its class before.
        became: its class after; None where nothing was changed.
        reason: why nothing was.
    """

    name: str
    kind: str
    became: str | None
    reason: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """Every convolution and norm of a model, and what became of it; printed line by line."""

    changes: tuple[Change, ...]

    @property
    def changed(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.became)

    @property
    def unchanged(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if not change.became)

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} changed, {len(self.unchanged)} not"]
        for c in self.changes:
            outcome = f"-> {c.became}" if c.became else f"stays: {c.reason}"
            lines.append(f"{c.name} {c.kind} {outcome}")
        return "\n".join(lines)


def convert(
    model: Model, *, standardize: bool = True, group_norm: bool = True, inplace: bool = False
) -> tuple[Model, ConversionReport]:
    """Standardize the convolutions of ``model`` that a norm follows, and turn BatchNorm into GN.

    A norm follows a convolution when it is the next module registered in the same parent and has
    as many channels, or is the convolution's own attribute ``norm``. Parameters keep their names
    and values; BatchNorm's running statistics have no counterpart and are dropped.

    Args:
        model: any module: 1d, 2d, 3d and transposed convolutions are known.
        standardize: whether convolutions are standardized.
        group_norm: whether BatchNorm becomes GroupNorm, with the largest number of groups up to 32
            that divides the channels.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The converted model, and what became of each convolution and norm, with reasons.

    Raises:
        ValueError: ``model`` itself is a BatchNorm, which has no parent to be replaced in.
    """
    if group_norm and isinstance(model, nn.modules.batchnorm._BatchNorm):
        raise ValueError(
            f"the model is a single {type(model).__name__}; convert the module that contains it."
        )
    converted = model if inplace else copy.deepcopy(model)
    changes: list[Change] = []
    normed = followed_by_norm(converted)
    after_convolution = set(normed.values())
    for parent_name, parent in list(converted.named_modules()):
        if isinstance(parent, nn.GroupNorm):
            continue  # BatchChannelNorm2d, which has a batch normalization within
        for child_name, child in list(parent.named_children()):
            name = f"{parent_name}.{child_name}" if parent_name else child_name
            kind = type(child).__name__
            if standardize and isinstance(child, CONVOLUTIONS):
                reason = make_standardized(child) if child in normed else "no norm follows it"
                became = None if reason else type(child).__name__
            elif group_norm and _is_norm(child):
                reason = _why_not_group_norm(child, child in after_convolution)
                became = None if reason else "GroupNorm"
                if became:
                    setattr(parent, child_name, _group_norm(child))
            else:
                continue
            changes.append(Change(name, kind, became, reason))
    return converted, ConversionReport(tuple(changes))


def followed_by_norm(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Each convolution of ``model`` that a norm follows (see :func:`convert`), and that norm."""
    found: dict[nn.Module, nn.Module] = {}
    for parent in model.modules():
        children = list(parent.children())
        for conv, after in itertools.pairwise(children):
            if (
                isinstance(conv, CONVOLUTIONS)
                and _is_norm(after)
                and _channels(after) == (conv.out_channels)
            ):
                found[conv] = after
        norm = getattr(parent, "norm", None)
        if isinstance(norm, nn.Module) and hasattr(parent, "kernel_size"):
            found[parent] = norm
    return found


def make_standardized(
    conv: Any, classes: Mapping[type[nn.Module], type[StandardizedConv]] = STANDARDIZED
) -> str:
    """Turn ``conv`` into a standardized convolution, in place.

    In place, as ``torch.nn.utils.parametrize`` does it: a model may also keep its convolutions in
    plain lists, which a replaced submodule would not reach.

    Args:
        conv: the convolution.
        classes: a class, and what a module of it becomes; so does one of a subclass that leaves
            ``forward`` as it is.

    Returns:
        "", or the reason why it cannot be, and ``conv`` is as it was.
    """
    kind = type(conv)
    if isinstance(conv, StandardizedConv):
        return "it is standardized"
    if parametrize.is_parametrized(conv):
        return "its weight is parametrized"
    target = classes.get(kind) or next(
        (to for c, to in classes.items() if issubclass(kind, c) and kind.forward is c.forward), None
    )
    if target is None:
        return f"{kind.__name__} has its own forward"
    if conv.in_channels // conv.groups * math.prod(conv.kernel_size) == 1:
        return "its fan-in is 1, and one number has no standard deviation"
    conv.plain_class = kind
    if target is WSConv2d and not hasattr(conv, "norm"):
        conv.norm = conv.activation = None
    conv.__class__ = target
    return ""


def plain_class(conv: StandardizedConv) -> type[nn.Module]:
    """The class that ``conv`` would have without standardization.

    Raises:
        TypeError: it was built with a norm or activation, and Detectron2, which has a class for
            that, is not installed.
    """
    if "plain_class" in conv.__dict__:
        return conv.__dict__["plain_class"]
    plain: Any = next(c for c in type(conv).__mro__ if not issubclass(c, StandardizedConv))
    called = [getattr(conv, name, None) is not None for name in ("norm", "activation")]
    if plain not in CONVOLUTIONS or not any(called):
        return plain
    try:
        from detectron2.layers import Conv2d
    except ImportError as error:
        raise TypeError(
            f"a {type(conv).__name__} with norm or activation is Detectron2's Conv2d without "
            "standardization, and Detectron2 is not installed. Install it."
        ) from error
    return Conv2d


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm) or (
        "FrozenBatchNorm" in type(module).__name__  # of torchvision and of Detectron2
    )


def _channels(norm: Any) -> int:
    for attribute in ("num_features", "num_channels"):
        if hasattr(norm, attribute):
            return getattr(norm, attribute)
    return norm.weight.numel()


def _why_not_group_norm(norm: nn.Module, after_convolution: bool) -> str:
    if isinstance(norm, nn.GroupNorm):
        return "it is GroupNorm"
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return "it is not a BatchNorm" if "Instance" in type(norm).__name__ else "it is frozen"
    if isinstance(norm, nn.BatchNorm1d) and not after_convolution:
        return "no convolution precedes it, and a group of one value has no deviation"
    return ""


def _group_norm(norm: Any) -> nn.GroupNorm:
    channels = _channels(norm)
    groups = next(g for g in range(MAX_GROUPS, 0, -1) if channels % g == 0)
    new = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine).train(norm.training)
    new.weight, new.bias = norm.weight, norm.bias  # on their device, frozen if they were
    return new
