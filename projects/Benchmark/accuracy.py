"""Every variant is compared with its own mathematics in float64 before it is timed.

Layer by layer, each convolution with a norm separately, in float32: this shows a wrong formula.
The whole, in the precision that is timed: this shows a wrong connection; the norm after each
convolution removes most of what a wrong scale does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from case import Case
from detectron2.modeling import GeneralizedRCNN
from torch import nn
from workloads import BackboneWorkload, ModelWorkload

SIZE = (128, 128)  # of the image: the timed one would take minutes in float64
PROPOSALS = 16
LAYER_TOLERANCE = 2e-5
# Of outputs and of gradients, relative. Gradients jump where rounding moves an input of a ReLU or
# of max pooling to the other side: one in a million can change them by 1e-3.
TOLERANCE = {"fp32": (3e-5, 1e-2), "tf32": (3e-2, 2e-1), "bf16": (1e-1, 5e-1)}


class InaccurateError(AssertionError):
    """A variant does not compute what its name says; its times would mean nothing."""


class Errors(NamedTuple):
    """Relative errors, in the Euclidean norm; None where there is nothing to compare."""

    layer: float | None
    output: float | None
    gradient: float | None


class Reference:
    """A model in float64, and the results of its small step."""

    def __init__(self, model: GeneralizedRCNN, case: Case) -> None:
        self.model = model
        exact = dataclasses.replace(case, precision="fp32", memory_format="nchw")
        self.outputs, self.gradients = small_step(model, exact)


def check(name: str, model: GeneralizedRCNN, reference: Reference, case: Case) -> Errors:
    """Compare ``model`` with its reference, the same weights and mathematics in float64.

    Raises:
        InaccurateError: an error is above its tolerance.
    """
    layer = layer_error(model, reference.model, case.device)
    outputs, gradients = small_step(model, case)
    pairs = zip(outputs, reference.outputs, strict=True)
    output = max(relative_error([ours], [true]) for ours, true in pairs)
    gradient = relative_error(gradients, reference.gradients) if case.training else None
    return within(name, case, Errors(layer, output, gradient))


def within(name: str, case: Case, errors: Errors) -> Errors:
    """``errors``, or InaccurateError where one is above its tolerance."""
    tolerances = (LAYER_TOLERANCE, *TOLERANCE[case.precision])
    for what, error, tolerance in zip(Errors._fields, errors, tolerances, strict=True):
        if error is not None and not error <= tolerance:  # nan is an error, too
            raise InaccurateError(
                f"{name}, {case}: the {what} error against float64 is {error:.1e}, more than "
                f"{tolerance:.0e}. This variant does not compute what its name says."
            )
    return errors


def layer_error(model: nn.Module, reference: nn.Module, device: str) -> float:
    """The largest error of an output or a weight gradient over all convolutions with a norm."""
    generator = torch.Generator().manual_seed(2)
    references = dict(reference.named_modules())
    worst = 0.0
    with torch.backends.cudnn.flags(allow_tf32=False):
        for name, conv in model.named_modules():
            if not isinstance(conv, nn.Conv2d) or getattr(conv, "norm", None) is None:
                continue
            size = max(conv.kernel_size)
            x = torch.randn(2, conv.in_channels, size, size, generator=generator).to(device)
            # A folded model has no gradient, nor has a frozen layer.
            pairs = zip(_layer(conv, x), _layer(references[name], x.double()), strict=False)
            worst = max(worst, *(relative_error([ours], [true]) for ours, true in pairs))
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
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    return [out, *torch.autograd.grad(out, conv.weight, slope)]


def small_step(model: GeneralizedRCNN, case: Case) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """All outputs, losses included, and all gradients of a step with one small image."""
    case = dataclasses.replace(case, size=SIZE, batch=1)
    if case.level == "model":
        work = ModelWorkload(case, proposals=PROPOSALS)
        found = work.step(model)()
        outputs = list(found.values()) if case.training else _masks(model, work)
        outputs += [tensor for tensors in work.predicted.values() for tensor in tensors]
    else:
        outputs = list(BackboneWorkload(case).step(model)().values())
    named = sorted(model.named_parameters())
    gradients = [p.grad.detach() for _, p in named if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return [t.detach() for t in outputs], gradients


@torch.inference_mode()
def _masks(model: GeneralizedRCNN, work: ModelWorkload) -> list[torch.Tensor]:
    """The mask head's output; pasted into the image it would be 0 and 1."""
    with work.case.autocast():
        found = model.inference(work.batch, do_postprocess=False)
    return [instances.pred_masks for instances in found if instances.has("pred_masks")]


def relative_error(ours: Iterable[torch.Tensor], true: Iterable[torch.Tensor]) -> float:
    """The norm of the difference of all tensors over the norm of ``true``."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, true, strict=True)]
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    return (difference / size) ** 0.5 if size else difference**0.5
