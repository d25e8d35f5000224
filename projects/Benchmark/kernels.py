"""The operations by themselves: WS of all weights of a model, GN + ReLU on each of its maps."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accuracy import Errors, relative_error, within
from baselines import Formula, plain_formula, plain_reference, timm_formula, timm_reference
from detectron2.utils.events import EventStorage
from measure import Comparison, Step, Subject
from torch import nn
from variants import BASE, CONTROL, OURS, PLAIN, TIMM, build, initial_state, variants
from workloads import Case, ModelWorkload, convolutions

from gnws_d2.layers import standardize_weight
from gnws_d2.projects.acceleration import group_norm_relu
from gnws_d2.projects.acceleration import kernels as dispatch

# A formula, and its mathematics in float64.
WS: dict[str, tuple[Formula, Formula]] = {
    PLAIN: (plain_formula, plain_reference),
    f"{PLAIN} again": (plain_formula, plain_reference),
    TIMM: (timm_formula, timm_reference),
    OURS: (standardize_weight, plain_reference),
}


def stock_gn_relu(x: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    return F.relu_(norm(x))


@contextlib.contextmanager
def _on_all_sizes() -> Iterator[None]:
    """Let Triton's kernels run on a GPU on maps of any size: where they win is to be seen."""
    least, dispatch.MIN_ELEMENTS = dispatch.MIN_ELEMENTS, 0
    try:
        yield
    finally:
        dispatch.MIN_ELEMENTS = least


def fused_gn_relu(x: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    return group_norm_relu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


# (N, C, H, W) and the layer that has the affine parameters, to (N, C, H, W).
GN_RELU: dict[str, Callable[[torch.Tensor, nn.GroupNorm], torch.Tensor]] = {
    BASE: stock_gn_relu,
    CONTROL: stock_gn_relu,
    "fused": fused_gn_relu,
}


def comparisons(case: Case) -> Iterator[Comparison]:
    """WS in training (at inference it is done once), and GN + ReLU on each shape of map."""
    state = initial_state(case.model)
    stock = next(v for v in variants(case.mode) if v.name == BASE)
    model: Any = build(stock, case.model, case.device, case.mode == "train", state)
    if case.mode == "train":
        yield _ws([conv.weight.detach() for conv in convolutions(model).values()], case)
    maps = _maps(model, case)
    del model
    for (shape, groups), count in maps.items():
        yield _gn_relu(shape, groups, count, case)


def _maps(model: Any, case: Case) -> dict[tuple[torch.Size, int], int]:
    """How often GN gets an input of a shape, by shape and number of groups."""
    found: dict[tuple[torch.Size, int], int] = collections.Counter()

    def count(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found[args[0].shape, norm.num_groups] += 1

    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(count)
    work = ModelWorkload(case)
    work.fix(model)
    with torch.no_grad(), EventStorage():
        model(work.batch)
    return found


def _ws(tensors: list[torch.Tensor], case: Case) -> Comparison:
    weights = nn.ParameterList([nn.Parameter(t.to(case.device)) for t in tensors])
    generator = torch.Generator().manual_seed(0)
    slopes = [torch.randn(w.shape, generator=generator).to(w) for w in weights]
    subjects = {}
    for name, (formula, reference) in WS.items():
        layer = 0.0
        for weight, slope in zip(weights, slopes, strict=True):
            true = _gradients(reference, [weight.detach().double()], slope.double())
            layer = max(layer, *_errors(_gradients(formula, [weight.detach()], slope), true))

        def step(formula: Formula = formula) -> None:
            standardized = [formula(w) for w in weights]
            torch.autograd.grad(standardized, list(weights), slopes)

        errors = within(name, case, Errors(layer, None, None))
        subjects[name] = Subject(step, weights, errors)
    return Comparison(f"WS of {len(weights)} weights", PLAIN, subjects)


def _gn_relu(shape: torch.Size, groups: int, count: int, case: Case) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    x, slope = (
        torch.randn(shape, generator=generator)
        .to(case.device, dtype)
        .contiguous(memory_format=case.format)
        for _ in range(2)
    )
    norm = nn.GroupNorm(groups, shape[1])
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.3, generator)
    norm.to(case.device)
    parameters = [x, norm.weight.detach(), norm.bias.detach()]

    def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        grouped = x.unflatten(1, (groups, -1))
        centered = grouped - grouped.mean((2, 3, 4), keepdim=True)
        variance = centered.square().mean((2, 3, 4), keepdim=True)
        normalized = (centered / (variance + norm.eps).sqrt()).flatten(1, 2)
        return (normalized * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).clamp(min=0)

    wide = [p.double() for p in parameters]
    true = _gradients(reference, wide, slope.double())
    subjects = {}
    for name, function in GN_RELU.items():

        def run(x: torch.Tensor, *_: Any, function: Callable = function) -> torch.Tensor:
            with case.autocast():
                return function(x, norm)

        with _on_all_sizes():
            output, *gradients = _gradients(run, [x], slope, list(norm.parameters()))
        found, *wrong = _errors([output, *gradients], true)
        errors = within(name, case, Errors(None, found, max(wrong)))
        subjects[name] = Subject(_step(run, x, slope, norm, case), norm, errors)
    return Comparison(f"GN+ReLU {' x '.join(map(str, shape))}", BASE, subjects, count)


def _step(run: Callable, x: torch.Tensor, slope: torch.Tensor, norm: Any, case: Case) -> Step:
    @_on_all_sizes()
    def train() -> None:
        norm.zero_grad(set_to_none=True)
        out = run(x.detach().requires_grad_())
        out.backward(slope.to(out.dtype))

    @_on_all_sizes()
    @torch.inference_mode()
    def infer() -> None:
        run(x)

    return train if case.mode == "train" else infer


def _gradients(
    function: Callable,
    inputs: list[torch.Tensor],
    slope: torch.Tensor,
    others: list[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """The output of ``function``, and its gradients at ``inputs`` and ``others``."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    wanted = leaves + (others or [])
    return [out.detach(), *torch.autograd.grad(out, wanted, slope.to(out.dtype))]


def _errors(ours: list[torch.Tensor], true: list[torch.Tensor]) -> list[float]:
    return [relative_error([a], [b]) for a, b in zip(ours, true, strict=True)]
