"""Which convolutions of a model are standardized: decided and reported here alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from detectron2.layers import Conv2d
from tabulate import tabulate
from torch import nn

from ..errors import ConfigError
from ..layers import BatchChannelNorm2d, StandardizedConv, WSConv2d
from ..layers.convert import STANDARDIZED, followed_by_norm, make_standardized
from .deform_conv import DEFORM_CONVS, WSDeformConv

_CLASSES = {**STANDARDIZED, Conv2d: WSConv2d, **dict.fromkeys(DEFORM_CONVS, WSDeformConv)}
_CONVOLUTIONS: Any = tuple(_CLASSES)


def standardize(model: nn.Module, parts: Sequence[str] | None = None) -> nn.Module:
    """Give every normalized convolution of ``model``, or of ``parts`` of it, a standardized weight,
    in place.

    A convolution is normalized when Detectron2 built it with a norm (``Conv2d(norm=...)``), or when
    a norm is the next module beside it, as in the heads of RetinaNet; those are the ones that the
    paper and the published detectors standardize. Parameters, their names and their initialization
    stay as they are.

    Args:
        model: any Detectron2 model, or a backbone or head alone.
        parts: names of parts, see :func:`part_of`; None stands for the whole model.

    Returns:
        ``model``, so that a LazyConfig can say ``LazyCall(standardize)(model=..., parts=[...])``.

    Raises:
        ConfigError: the model has no such part, or the part has no normalized convolution, or one
            that cannot be standardized.
    """
    normed = followed_by_norm(model)
    convs = [(name, conv, part_of(name)) for name, conv in _convolutions(model)]
    for part in [None] if parts is None else parts:
        chosen = [(name, conv) for name, conv, of in convs if part in (None, of)]
        if part is not None and not chosen:
            known = ", ".join(dict.fromkeys(of for _, _, of in convs))
            raise ConfigError(
                f"{part!r} is not a part of this {type(model).__name__}. Choose from: {known} "
                "(MODEL.WS.PARTS, or the argument parts)."
            )
        owner = type(model).__name__ if part is None else f"part {part!r}"
        chosen = [(name, conv) for name, conv in chosen if conv in normed]
        if not chosen:
            raise ConfigError(
                f"{owner} has no convolution with a norm, and Weight Standardization needs one. "
                'Set its NORM key, if it has one, to "GN", or do not standardize it.'
            )
        for name, conv in chosen:
            reason = "" if isinstance(conv, StandardizedConv) else make_standardized(conv, _CLASSES)
            if reason:
                raise ConfigError(
                    f"{name} of {owner} cannot be standardized: {reason}. Do not standardize it."
                )
    return model


def part_of(name: str) -> str:
    """The part of a model to which the module of that qualified name belongs, in the words of
    Detectron2's configs: "stem", "fpn" and "backbone" (the residual stages) within the backbone,
    "rpn" for the proposal generator, the name of the head within ROI heads ("box_head",
    "mask_head", ...), and the name of the top-level module for everything else."""
    if name.startswith("proposal_generator."):
        return "rpn"
    inner = re.sub(r"^(backbone\.)?(bottom_up\.)?", "", name)
    if inner.startswith("stem."):
        return "stem"
    if inner.startswith("fpn_"):
        return "fpn"
    if name.startswith(("backbone.", "bottom_up.", "res")):
        return "backbone"
    return name.removeprefix("roi_heads.").split(".")[0]


def _convolutions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _CONVOLUTIONS)]


class PartReport(NamedTuple):
    """The counts of all, standardized and normalized convolutions in a part, and its norms."""

    part: str
    convolutions: int
    standardized: int
    normalized: int
    norms: tuple[str, ...]


@dataclass(frozen=True)
class StandardizationReport:
    """What is standardized and normalized in a model, part by part; printed as a table."""

    rows: tuple[PartReport, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "StandardizationReport":
        """The report on ``model``, as it is built."""
        normed = followed_by_norm(model)
        parts: dict[str, list[nn.Module]] = {}
        for name, conv in _convolutions(model):
            parts.setdefault(part_of(name), []).append(conv)
        rows = []
        for part, convs in parts.items():
            standardized = sum(isinstance(conv, StandardizedConv) for conv in convs)
            norms = [_name(normed[conv]) for conv in convs if conv in normed]
            kinds = tuple(dict.fromkeys(norms))
            rows.append(PartReport(part, len(convs), standardized, len(norms), kinds))
        return cls(tuple(rows))

    @property
    def standardized(self) -> list[str]:
        """The parts that have standardized convolutions."""
        return [row.part for row in self.rows if row.standardized]

    def __str__(self) -> str:
        cells = [[*row[:-1], ", ".join(row.norms) or "-"] for row in self.rows]
        return tabulate(cells, [*PartReport._fields[:-1], "norm"], tablefmt="pipe")


def _name(norm: nn.Module) -> str:
    name = type(norm).__name__
    return f"{name} ({type(norm.bn).__name__})" if isinstance(norm, BatchChannelNorm2d) else name
