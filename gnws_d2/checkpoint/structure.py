"""Names and shapes of a model's tensors, and how those of a checkpoint differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..config import META_ARCHITECTURE
from ..norms import with_norm_layers

Shapes = dict[str, tuple[int, ...]]

_LISTED = 20  # names of one kind in a message


def shapes_of(cfg: CfgNode) -> Shapes:
    """The names and shapes of the tensors of the model that ``cfg`` describes.

    The model is built without memory for its tensors; that takes a fraction of a second.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    if cfg.MODEL.META_ARCHITECTURE == META_ARCHITECTURE:
        # Standardization changes no name and no shape.
        cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.WS.META_ARCHITECTURE
    with torch.device("meta"):
        model = build_model(with_norm_layers(cfg))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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
