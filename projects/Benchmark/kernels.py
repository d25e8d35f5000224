"""The operations alone: WS of all weights of a model, and GN + ReLU on each of its feature maps."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from accuracy import Errors, relative_error, within
from baselines import plain_formula, timm_formula
from case import Case
from detectron2.utils.events import EventStorage
from measure import Step
from torch import nn
from variants import BASE, CONTROL, OURS, PLAIN, TIMM, VARIANTS, build, initial_state
from workloads import ModelWorkload

from gnws_d2.layers import StandardizedConv, standardize_weight
from gnws_d2.projects.acceleration import group_norm_relu
from gnws_d2.projects.acceleration import kernels as dispatch

# The formula, and the one whose float64 it is compared with.
WS = {
    PLAIN: (plain_formula, plain_formula),
    f"{PLAIN} again": (plain_formula, plain_formula),
    TIMM: (timm_formula, timm_formula),
    OURS: (standardize_weight, plain_formula),
}


def stock_gn_relu(x: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    return F.relu_(norm(x))


def fused_gn_relu(x: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    return group_norm_relu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


GN_RELU = {BASE: stock_gn_relu, CONTROL: stock_gn_relu, "fused": fused_gn_relu}
Operations = dict[str, tuple[Step, nn.Module, Errors]]


def operations(case: Case) -> Iterator[tuple[str, int, Operations]]:
    """What is run, how often the model runs it, and its implementations; the first is the base.
    WS only in training (at inference it is computed once)."""
    ours = next(v for v in VARIANTS if v.name == OURS)
    model: Any = build(ours, case, initial_state(case))
    convolutions = [m for m in model.modules() if isinstance(m, StandardizedConv)]
    shapes = _shapes(model, case)
    del model
    if case.training:
        yield f"WS of {len(convolutions)} weights", 1, _ws([c.weight for c in convolutions], case)
    # On a GPU, Triton's kernels run on maps of any size: the run shows where they win.
    with mock.patch.object(dispatch, "MIN_ELEMENTS", 0):
        for (shape, groups), count in shapes.items():
            yield f"GN+ReLU {' x '.join(map(str, shape))}", count, _gn_relu(shape, groups, case)


def _shapes(model: Any, case: Case) -> dict[tuple[torch.Size, int], int]:
    """How often a GN's input has a shape, by shape and number of groups."""
    found: dict[tuple[torch.Size, int], int] = collections.Counter()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(
                lambda norm, args: found.update([(args[0].shape, norm.num_groups)])
            )
    work = ModelWorkload(case)
    work.fix(model)
    with torch.no_grad(), EventStorage():
        model(work.batch)
    return found


def _ws(tensors: list[torch.Tensor], case: Case) -> Operations:
    weights = nn.ParameterList([nn.Parameter(t.detach().clone()) for t in tensors])
    generator = torch.Generator().manual_seed(0)
    slopes = [torch.randn(w.shape, generator=generator).to(w) for w in weights]

    def run(formula: Callable, w: list[torch.Tensor], g: list[torch.Tensor]) -> list[torch.Tensor]:
        standardized = [formula(weight) for weight in w]
        return [*standardized, *torch.autograd.grad(standardized, w, g)]

    found: Operations = {}
    for name, (formula, reference) in WS.items():
        wide = [w.detach().double().requires_grad_() for w in weights]
        true = run(reference, wide, [s.double() for s in slopes])
        errors = map(_error, run(formula, list(weights), slopes), true)
        checked = within(name, case, Errors(max(errors), None, None))
        found[name] = (lambda f=formula: run(f, list(weights), slopes)), weights, checked
    return found


def _gn_relu(shape: torch.Size, groups: int, case: Case) -> Operations:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    norm: nn.GroupNorm = nn.GroupNorm(groups, shape[1])
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.3, generator)
    norm.to(case.device)
    x, slope = (torch.randn(shape, generator=generator).to(case.device, dtype) for _ in range(2))
    x, slope = (t.contiguous(memory_format=case.format) for t in (x, slope))

    def run(function: Callable, x: torch.Tensor, norm: Any) -> list[torch.Tensor]:
        leaf = x.detach().requires_grad_()
        with case.autocast():
            out = function(leaf, norm)
        gradients = torch.autograd.grad(out, [leaf, *norm.parameters()], slope.to(out.dtype))
        return [out, *gradients]

    @torch.inference_mode()
    def infer(function: Callable) -> torch.Tensor:
        with case.autocast():
            return function(x, norm)

    step = (lambda function: run(function, x, norm)) if case.training else infer
    wide = nn.GroupNorm(groups, shape[1]).to(case.device, torch.float64)
    wide.load_state_dict(norm.state_dict())
    true = run(stock_gn_relu, x.double(), wide)
    found: Operations = {}
    for name, function in GN_RELU.items():
        output, *gradients = map(_error, run(function, x, norm), true)
        checked = within(name, case, Errors(None, output, max(gradients)))
        found[name] = (lambda f=function: step(f)), norm, checked
    return found


def _error(ours: torch.Tensor, true: torch.Tensor) -> float:
    return relative_error([ours], [true])
