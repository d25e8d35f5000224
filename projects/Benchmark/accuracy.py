"""No time without this: every variant against its own mathematics in float64.

Two comparisons. Layer by layer, each convolution with a norm by itself, in float32: there a wrong
formula shows. The whole, in the precision that is timed: there a wrong connection shows; a norm
after each convolution takes out most of what a wrong scale does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn
from workloads import BackboneWorkload, Case, ModelWorkload, convolutions

SIZE = (128, 128)  # of the picture: in float64 the whole one would take minutes
PROPOSALS = 16
LAYER_TOLERANCE = 2e-5
# Of outputs and of gradients, relative. Gradients jump where rounding takes an input of a ReLU or
# of max pooling to the other side: one among a million can change them by 1e-3.
TOLERANCE = {"fp32": (3e-5, 1e-2), "tf32": (3e-2, 2e-1), "bf16": (1e-1, 5e-1)}


class InaccurateError(AssertionError):
    """A variant is not what it is said to be; its times would mean nothing."""


class Errors(NamedTuple):
    """Relative errors, in the Euclidean norm; None where there is nothing to compare."""

    layer: float | None
    output: float | None
    gradient: float | None


class Reference:
    """A model in float64, and what its small step of ``case`` gives."""

    def __init__(self, model: GeneralizedRCNN, case: Case) -> None:
        self.model = model
        small = dataclasses.replace(case, precision="fp32")
        self.outputs, self.gradients = small_step(model, small)


def check(name: str, model: GeneralizedRCNN, reference: Reference, case: Case) -> Errors:
    """Compare ``model`` with its reference, the same weights and mathematics in float64.

    Raises:
        InaccurateError: an error is above its tolerance.
    """
    layer = layer_error(model, reference.model, case.device)
    outputs, gradients = small_step(model, case)
    pairs = zip(outputs, reference.outputs, strict=True)
    output = max(relative_error([ours], [true]) for ours, true in pairs)
    gradient = None
    if case.mode == "train":
        gradient = relative_error(gradients, reference.gradients)
    return within(name, case, Errors(layer, output, gradient))


def within(name: str, case: Case, errors: Errors) -> Errors:
    """``errors``, or InaccurateError where one is above its tolerance."""
    most = (LAYER_TOLERANCE, *TOLERANCE[case.precision])
    for what, error, tolerance in zip(Errors._fields, errors, most, strict=True):
        if error is not None and not error <= tolerance:  # nan is an error too
            raise InaccurateError(
                f"{name}, {case}: the {what} error against float64 is {error:.1e}, more than "
                f"{tolerance:.0e}. This variant does not compute what its name says."
            )
    return errors


def layer_error(model: nn.Module, reference: nn.Module, device: str) -> float:
    """The largest error of an output or a weight gradient over all convolutions with a norm."""
    generator = torch.Generator().manual_seed(2)
    references = convolutions(reference)
    worst = 0.0
    with _full_float32():
        for name, conv in convolutions(model).items():
            size = max(conv.kernel_size)
            x = torch.randn(2, conv.in_channels, size, size, generator=generator).to(device)
            ours, theirs = _layer(conv, x), _layer(references[name], x.double())
            # A folded model has no gradient, a frozen layer neither.
            worst = max(
                worst, *(relative_error([a], [b]) for a, b in zip(ours, theirs, strict=False))
            )
    return worst


def _layer(conv: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The output of ``conv`` without its norm, and the gradient of its weight, if it has one."""
    norm, activation, conv.norm, conv.activation = conv.norm, conv.activation, None, None
    try:
        out = conv(x)
    finally:
        conv.norm, conv.activation = norm, activation
    if not out.requires_grad:
        return [out]
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(out.shape, generator=generator).to(out)
    (gradient,) = torch.autograd.grad(out, conv.weight, slope)
    return [out, gradient]


def small_step(model: GeneralizedRCNN, case: Case) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """All outputs, losses included, and all gradients of a step with one small picture."""
    case = dataclasses.replace(case, size=SIZE, batch=1)
    if case.level == "model":
        given = ModelWorkload(case, proposals=PROPOSALS)
        found = given.step(model)()
        outputs = list(found.values()) if case.mode == "train" else _masks(model, given)
        outputs += [t for seen in given.seen.values() for t in seen]
    else:
        outputs = list(BackboneWorkload(case).step(model)().values())
    named = sorted(model.named_parameters())
    gradients = [p.grad.detach() for _, p in named if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return [t.detach() for t in outputs], gradients


@torch.inference_mode()
def _masks(model: GeneralizedRCNN, given: ModelWorkload) -> list[torch.Tensor]:
    """As the mask head gives them; pasted into the picture they are 0 and 1."""
    with given.case.autocast():
        found = model.inference(given.batch, do_postprocess=False)
    return [instances.pred_masks for instances in found if instances.has("pred_masks")]


def relative_error(ours: Iterable[torch.Tensor], true: Iterable[torch.Tensor]) -> float:
    """The norm of the difference of all tensors over the norm of ``true``."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, true, strict=True)]
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    return (difference / size) ** 0.5 if size else difference**0.5


@contextmanager
def _full_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
