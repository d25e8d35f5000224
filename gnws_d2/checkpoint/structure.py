"""What a model expects of a state dict, and what is wrong with one."""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..errors import CheckpointError, shorten
from ..modeling.errors import build_errors

Shapes = dict[str, tuple[int, ...]]

_LISTED = 6  # tensors of one kind in a message
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def check_values(
    state_dict: Mapping[str, Any], source: str, like: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Raise CheckpointError unless all values of ``state_dict`` are dense tensors, and finite.

    Args:
        source: what holds it, for the message.
        like: the tensors of the model. ``state_dict`` must have floating-point values where these
            have them, and integers elsewhere. By default all must be floating-point.
    """
    for name, value in state_dict.items():
        if problem := _problem(value, None if like is None else like.get(name, value)):
            raise CheckpointError(
                f"{source}: {name} {problem}. If the training diverged or the file is damaged, use "
                "an earlier checkpoint; otherwise save model.state_dict()."
            )


def _problem(tensor: object, like: torch.Tensor | None) -> str:
    if not isinstance(tensor, torch.Tensor):
        return f"is {shorten(tensor)}, not a tensor"
    is_floating = like is None or like.is_floating_point() or like.is_complex()
    if (tensor.dtype in _FLOATING) != is_floating:
        kind = str(tensor.dtype).removeprefix("torch.")
        expected = "floating-point" if is_floating else "integer"
        return f"is {kind}, but the model has {expected} values there"
    if tensor.layout is not torch.strided or tensor.is_meta:
        return "is a sparse tensor, or one without values"
    # A sum is one fast pass, and finite unless an element is not or it overflows.
    if is_floating and not tensor.sum().isfinite() and not tensor.isfinite().all():
        return "has NaN or infinite values"
    return ""


class Differences:
    """How tensors differ in names and shapes from what is expected; false if they do not. The
    number of batches that a BatchNorm has seen may be missing or left over: nothing reads it."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], expected: Shapes) -> None:
        found = {name: tuple(tensors[name].shape) for name in tensors if _is_read(name)}
        self.missing = {n: expected[n] for n in expected if _is_read(n) and n not in found}
        self.unexpected = {n: shape for n, shape in found.items() if n not in expected}
        self.misshaped = {
            n: f"{shape} instead of {expected[n]}"
            for n, shape in found.items()
            if shape != expected.get(n, shape)
        }

    def __len__(self) -> int:
        return sum(map(len, vars(self).values()))

    def __str__(self) -> str:
        said = []
        for kind, shapes in vars(self).items():
            listed = ", ".join(f"{n} {shape}" for n, shape in [*shapes.items()][:_LISTED])
            more = f" and {len(shapes) - _LISTED} more" * (len(shapes) > _LISTED)
            said += [f"{len(shapes)} {kind}: {listed}{more}"] * bool(shapes)
        return "; ".join(said)


def _is_read(name: str) -> bool:
    return not name.endswith(".num_batches_tracked")
