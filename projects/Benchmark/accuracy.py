"""Every variant is compared with its own mathematics in float64 before it is timed.

The comparison is a step with a small image, in the precision that is timed.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from measure import Step
from torch import nn
from variants import Case, Variant, build, initial_state
from workloads import workload

from gnws_d2.errors import GnwsError

SIZE = (128, 128)  # of the image: the timed one would take minutes in float64
PROPOSALS = 16
# Of outputs and of gradients, relative. Gradients jump where rounding moves an input of a ReLU or
# of max pooling to the other side: one in a million can change them by 1e-3.
TOLERANCE = {"fp32": (3e-5, 1e-2), "bf16": (1e-1, 5e-1)}


class Results(NamedTuple):
    """Of a step; gradients in the order of the parameters' names."""

    outputs: list[torch.Tensor]
    gradients: list[torch.Tensor]


class Errors(NamedTuple):
    """Relative, in the Euclidean norm; no gradient at inference."""

    output: float
    gradient: float | None


Subjects = dict[str, tuple[Step, nn.Module, Errors]]


def prepare(case: Case, variants: Sequence[Variant]) -> Subjects:
    """Step, model and errors of each variant, by name.

    Raises:
        GnwsError: an error is above its tolerance.
    """
    state, work = initial_state(case), workload(case)
    subjects: Subjects = {}
    references: dict[Any, Results] = {}
    for variant in variants:
        mathematics = variant.formula, tuple(variant.opts) if variant.stock else ()
        if mathematics not in references:
            exact: Any = build(variant, case, state, exact=True)
            references[mathematics] = small_step(exact, dataclasses.replace(case, precision="fp32"))
        model: Any = build(variant, case, state)
        errors = check(variant.name, case, small_step(model, case), references[mathematics])
        subjects[variant.name] = work.step(model), model, errors
    return subjects


def check(name: str, case: Case, found: Results, expected: Results) -> Errors:
    """The largest error of an output, and that of all gradients, against those in float64.

    Raises:
        GnwsError: an error is above what the precision of ``case`` tolerates.
    """
    pairs = zip(found.outputs, expected.outputs, strict=True)
    output = float(np.max([relative_error([ours], [true]) for ours, true in pairs]))  # or nan
    gradient = relative_error(found.gradients, expected.gradients) if case.training else None
    errors, tolerances = Errors(output, gradient), Errors(*TOLERANCE[case.precision])
    if not all(e is None or e <= most for e, most in zip(errors, tolerances, strict=True)):
        raise GnwsError(
            f"{name}, {case}, does not compute what its name says: against float64 it has "
            f"{errors}; tolerated are {tolerances}."
        )
    return errors


def small_step(model: GeneralizedRCNN, case: Case) -> Results:
    """All outputs, losses included, and all gradients of a step with one small image."""
    work = workload(dataclasses.replace(case, size=SIZE), PROPOSALS)
    found = [*work.step(model)().values()]
    outputs = [t for t in found if isinstance(t, torch.Tensor)]  # not detections
    outputs += [tensor for tensors in work.predicted.values() for tensor in tensors]
    named = sorted(model.named_parameters())
    gradients = [p.grad.detach() for _, p in named if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return Results([t.detach() for t in outputs], gradients)


def relative_error(ours: Iterable[torch.Tensor], true: Iterable[torch.Tensor]) -> float:
    """The norm of the difference of all tensors over the norm of ``true``."""
    a, b = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (ours, true))
    difference, size = float((a - b).norm()), float(b.norm())
    return difference / size if size else difference
