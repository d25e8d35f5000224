"""Names and shapes of a model's tensors, and how those of a checkpoint differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..modeling import StandardizationReport
from ..modeling.errors import build_errors

Shapes = dict[str, tuple[int, ...]]

_LISTED = 6  # names of one kind in a message


def build_on_meta(cfg: CfgNode) -> nn.Module:
    """The model that ``cfg`` describes, without memory for its tensors: built in a fraction of a
    second."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), build_errors(cfg):
        return build_model(cfg)


def shapes_of(cfg: CfgNode) -> Shapes:
    """The names and shapes of the tensors of the model that ``cfg`` describes."""
    return {name: tuple(t.shape) for name, t in build_on_meta(cfg).state_dict().items()}


def standardized_parts(cfg: CfgNode) -> list[str]:
    """The parts with standardized convolutions of the model that ``cfg`` describes."""
    return StandardizationReport.of(build_on_meta(cfg)).standardized


@dataclass(frozen=True)
class Differences:
    """How a checkpoint differs from what is expected; empty (false) when it does not.

    Attributes:
        missing: expected tensors that it lacks.
        unexpected: its tensors that are not expected.
        misshaped: (shape found, shape expected) of those that have another shape.
    """

    missing: Shapes
    unexpected: Shapes
    misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    def __str__(self) -> str:
        kinds = {
            "missing": [f"{name} {shape}" for name, shape in self.missing.items()],
            "unexpected": [f"{name} {shape}" for name, shape in self.unexpected.items()],
            "misshaped": [
                f"{name} {found} instead of {expected}"
                for name, (found, expected) in self.misshaped.items()
            ],
        }
        return "; ".join(
            f"{len(lines)} {kind}: {', '.join(lines[:_LISTED])}"
            + (f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else "")
            for kind, lines in kinds.items()
            if lines
        )


def compare(tensors: Mapping[str, torch.Tensor], expected: Shapes) -> Differences:
    """Compare the names and shapes of ``tensors`` with what is ``expected``."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Differences(
        missing={name: shape for name, shape in expected.items() if name not in found},
        unexpected={name: shape for name, shape in found.items() if name not in expected},
        misshaped={
            name: (shape, expected[name])
            for name, shape in found.items()
            if name in expected and shape != expected[name]
        },
    )
