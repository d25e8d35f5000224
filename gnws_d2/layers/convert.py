"""Weight Standardization and Group Normalization for a ``torch.nn.Module`` built without them.

A convolution is standardized when a norm follows it: its scale and offset then do not matter, which
the paper relies on.
"""

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .ws_conv import STANDARDIZED, StandardizedConv, WSConv2d

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Change:
    """What became of one module."""

    name: str  # in its model
    kind: str  # its class before
    became: str  # its class after, or ""
    reason: str  # why it was not changed, or ""


@dataclass(frozen=True)
class ConversionReport:
    """Every convolution and norm of a model, and what became of it; printed line by line."""

    changes: tuple[Change, ...]

    def __str__(self) -> str:
        changed = sum(bool(change.became) for change in self.changes)
        lines = [f"{changed} changed, {len(self.changes) - changed} not"]
        for c in self.changes:
            outcome = f"-> {c.became}" if c.became else f"stays: {c.reason}"
            lines.append(f"{c.name} {c.kind} {outcome}")
        return "\n".join(lines)


def convert(
    model: Model, *, standardize: bool = True, group_norm: bool = True, inplace: bool = False
) -> tuple[Model, ConversionReport]:
    """Standardize the convolutions of ``model`` that a norm follows, and turn BatchNorm into GN.

    A norm follows a convolution when it is the next module registered in the same parent and has
    as many channels, or is the convolution's own attribute ``norm``. GroupNorm gets the largest
    number of groups up to 32 that divides the channels. Parameters keep their names and values;
    BatchNorm's running statistics have no counterpart and are dropped.

    Args:
        model: any module; 1d, 2d, 3d and transposed convolutions are known.
        standardize, group_norm: False leaves one half out.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The converted model, and what became of each convolution and norm, with reasons.

    Raises:
        ValueError: ``model`` itself is a BatchNorm, which has no parent to be replaced in.
    """
    if group_norm and isinstance(model, _BatchNorm):
        raise ValueError(
            f"the model is a single {type(model).__name__}; convert the module that contains it."
        )
    converted = model if inplace else copy.deepcopy(model)
    changes: list[Change] = []
    normed = followed_by_norm(converted)
    for parent_name, parent in list(converted.named_modules()):
        if isinstance(parent, nn.GroupNorm):
            continue  # BatchChannelNorm2d, which contains a batch normalization
        for child_name, child in list(parent.named_children()):
            kind = type(child).__name__
            if standardize and isinstance(child, _ConvNd):
                reason = make_standardized(child) if child in normed else "no norm follows it"
            elif group_norm and _is_norm(child):
                reason = _why_not_group_norm(child, child in normed.values())
                if not reason:
                    setattr(parent, child_name, _group_norm(child))
            else:
                continue
            became = "" if reason else type(getattr(parent, child_name)).__name__
            changes.append(Change(f"{parent_name}.{child_name}".lstrip("."), kind, became, reason))
    return converted, ConversionReport(tuple(changes))


def followed_by_norm(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Each convolution of ``model`` that a norm follows (see :func:`convert`), and that norm."""
    found: dict[nn.Module, nn.Module] = {}
    for parent in model.modules():
        children: list[Any] = list(parent.children())
        for conv, after in itertools.pairwise(children):
            if isinstance(conv, _ConvNd) and _is_norm(after):
                channels = getattr(after, "num_features", getattr(after, "num_channels", None))
                if (channels or len(after.weight)) == conv.out_channels:
                    found[conv] = after
        norm = getattr(parent, "norm", None)
        if isinstance(norm, nn.Module) and hasattr(parent, "kernel_size"):
            found[parent] = norm
    return found


def make_standardized(
    conv: Any, classes: Mapping[type[nn.Module], type[StandardizedConv]] = STANDARDIZED
) -> str:
    """Turn ``conv`` into what ``classes`` has for its class, or for a parent with the same
    ``forward``; return "", or the reason why it cannot be standardized and is unchanged.

    In place, as ``torch.nn.utils.parametrize`` does it: a model may also keep its convolutions in
    plain lists, which a replaced submodule would not reach.
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


def _is_norm(module: nn.Module) -> bool:
    kind = type(module)  # FrozenBatchNorm2d, CycleBatchNormList and LayerNorm are Detectron2's
    return isinstance(module, _NormBase | nn.GroupNorm) or (
        "FrozenBatchNorm" in kind.__name__ or kind.__module__ == "detectron2.layers.batch_norm"
    )


def _why_not_group_norm(norm: nn.Module, after_convolution: bool) -> str:
    if isinstance(norm, nn.GroupNorm):
        return "it is GroupNorm"
    if not isinstance(norm, _BatchNorm):
        return "it is frozen" if "Frozen" in type(norm).__name__ else "it is not a BatchNorm"
    if isinstance(norm, nn.BatchNorm1d) and not after_convolution:
        return "no convolution precedes it, and a group of one value has no deviation"
    return ""


def _group_norm(norm: Any) -> nn.GroupNorm:
    channels = norm.num_features
    groups = next(g for g in range(32, 0, -1) if channels % g == 0)
    new = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine).train(norm.training)
    new.weight, new.bias = norm.weight, norm.bias  # on their device, frozen if they were
    return new
