"""Which convolutions of a model are standardized: decided and reported here alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detectron2.layers import Conv2d
from tabulate import tabulate
from torch import nn

from ..config import ConfigError
from ..layers import BatchChannelNorm2d, StandardizedConv, WSConv2d
from ..layers.convert import CONVOLUTIONS, STANDARDIZED, followed_by_norm, make_standardized
from .deform_conv import DEFORM_CONVS, WSDeformConv

_CLASSES = {**STANDARDIZED, Conv2d: WSConv2d, **dict.fromkeys(DEFORM_CONVS, WSDeformConv)}


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
    if parts is None:
        found = [(name, conv) for name, conv, _ in convs if conv in normed]
        _make_standardized(found, type(model).__name__)
        return model
    for part in parts:
        chosen = [(name, conv) for name, conv, of in convs if of == part]
        if not chosen:
            known = ", ".join(dict.fromkeys(of for _, _, of in convs))
            raise ConfigError(
                f"{part!r} is not a part of this {type(model).__name__}. Choose from: {known} "
                "(MODEL.WS.PARTS, or the argument parts)."
            )
        _make_standardized([(n, conv) for n, conv in chosen if conv in normed], f"part {part!r}")
    return model


def _make_standardized(convs: Sequence[tuple[str, nn.Module]], owner: str) -> None:
    if not convs:
        raise ConfigError(
            f"{owner} has no convolution with a norm, and Weight Standardization needs one. Set "
            f'its NORM key to "GN", or do not standardize it.'
        )
    for name, conv in convs:
        reason = "" if isinstance(conv, StandardizedConv) else make_standardized(conv, _CLASSES)
        if reason:
            raise ConfigError(
                f"{name} of {owner} cannot be standardized: {reason}. Do not standardize {owner}."
            )


def part_of(name: str) -> str:
    """The part of a model to which a module belongs, in the words of Detectron2's configs.

    Args:
        name: the module's qualified name in the model.

    Returns:
        "stem", "fpn" and "backbone" (the residual stages) within the backbone, "rpn" for the
        proposal generator, the name of the head within ROI heads ("box_head", "mask_head", ...),
        and the name of the top-level module for everything else.
    """
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


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, *DEFORM_CONVS)):
            yield name, module


@dataclass(frozen=True)
class StandardizationReport:
    """What is standardized and normalized in a model, part by part; printed as a table."""

    rows: tuple[PartReport, ...]

    @classmethod
    def of(cls, model: nn.Module) -> StandardizationReport:
        normed = followed_by_norm(model)
        parts: dict[str, list[nn.Module]] = {}
        for name, conv in _convolutions(model):
            parts.setdefault(part_of(name), []).append(conv)
        return cls(tuple(_report_part(part, convs, normed) for part, convs in parts.items()))

    @property
    def standardized(self) -> list[str]:
        """The parts that have standardized convolutions."""
        return [row.part for row in self.rows if row.standardized]

    def __str__(self) -> str:
        header = ["part", "convolutions", "standardized", "normalized", "norm"]
        cells = [
            [r.part, r.convolutions, r.standardized, r.normalized, ", ".join(r.norms) or "-"]
            for r in self.rows
        ]
        return tabulate(cells, header, tablefmt="pipe")


@dataclass(frozen=True)
class PartReport:
    """The counts of all, standardized and normalized convolutions in a part, and its norms."""

    part: str
    convolutions: int
    standardized: int
    normalized: int
    norms: tuple[str, ...]


def _report_part(
    part: str, convs: Sequence[nn.Module], normed: dict[nn.Module, nn.Module]
) -> PartReport:
    norms = [_name(normed[conv]) for conv in convs if conv in normed]
    return PartReport(
        part=part,
        convolutions=len(convs),
        standardized=sum(isinstance(conv, StandardizedConv) for conv in convs),
        normalized=len(norms),
        norms=tuple(dict.fromkeys(norms)),
    )


def _name(norm: nn.Module) -> str:
    if isinstance(norm, BatchChannelNorm2d):
        return f"{type(norm).__name__} ({type(norm.bn).__name__})"
    return type(norm).__name__
