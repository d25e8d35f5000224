"""The operations alone: WS of all weights of a model, and GN + ReLU on each of its feature maps."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accuracy import Results, Subjects, check
from baselines import Formula, plain_formula, timm_formula
from case import Case
from detectron2.utils.events import EventStorage
from torch import nn
from variants import BASE, CONTROL, OURS, PLAIN, TIMM, VARIANTS, build, initial_state
from workloads import ModelWorkload

from gnws_d2.layers import StandardizedConv, standardize_weight
from gnws_d2.projects.acceleration import group_norm_relu, use_triton_from

Tensors = Sequence[torch.Tensor]
Operation = Callable[[Tensors], Tensors]


def operations(case: Case) -> Iterator[tuple[str, int, Subjects]]:
    """What is run, how often the model runs it, and its implementations; the first is the base.
    WS only in training (at inference it is computed once)."""
    ours = next(v for v in VARIANTS if v.name == OURS)
    model: Any = build(ours, case, initial_state(case))
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, StandardizedConv)]
    shapes = _shapes(model, case)
    del model
    if case.training:
        yield f"WS of {len(weights)} weights", 1, _ws(weights, case)
    # On a GPU, Triton's kernels run on maps of any size: the run shows where they win.
    with use_triton_from(elements=0):
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


def _ws(weights: list[torch.Tensor], case: Case) -> Subjects:
    def of_all(formula: Formula) -> Operation:
        return lambda weights: [formula(weight) for weight in weights]

    plain, timm, ours = map(of_all, (plain_formula, timm_formula, standardize_weight))
    pairs = {PLAIN: (plain, plain), f"{PLAIN} again": (plain, plain), TIMM: (timm, timm)}
    pairs[OURS] = ours, plain
    model = nn.ParameterList([nn.Parameter(weight.clone()) for weight in weights])
    generator = torch.Generator().manual_seed(0)
    slopes = [torch.randn(w.shape, generator=generator).to(w) for w in weights]
    return _compare(pairs, model, list(model), slopes, case)


def _gn_relu(shape: torch.Size, groups: int, case: Case) -> Subjects:
    def stock(inputs: Tensors) -> Tensors:
        return [F.relu_(F.group_norm(inputs[0], groups, *inputs[1:]))]

    def fused(inputs: Tensors) -> Tensors:
        return [group_norm_relu(inputs[0], groups, *inputs[1:])]

    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    norm = nn.GroupNorm(groups, shape[1])
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.3, generator)
    norm.to(case.device)
    x, slope = (torch.randn(shape, generator=generator).to(case.device, dtype) for _ in range(2))
    pairs = {BASE: (stock, stock), CONTROL: (stock, stock), "fused": (fused, stock)}
    return _compare(pairs, norm, [x.requires_grad_(), norm.weight, norm.bias], [slope], case)


def _compare(
    pairs: Mapping[str, tuple[Operation, Operation]],
    model: nn.Module,
    inputs: Tensors,
    slopes: Tensors,
    case: Case,
) -> Subjects:
    """The first operation of each pair on ``inputs``, compared with the second in float64."""

    def train(operation: Operation, inputs: Tensors) -> list[torch.Tensor]:
        with case.autocast():
            outputs = operation(inputs)
        like = [slope.to(out.dtype) for slope, out in zip(slopes, outputs, strict=True)]
        return [*outputs, *torch.autograd.grad(outputs, inputs, like)]

    @torch.inference_mode()
    def infer(operation: Operation, inputs: Tensors) -> Tensors:
        with case.autocast():
            return operation(inputs)

    run = train if case.training else infer
    wide = [t.detach().double().requires_grad_() for t in inputs]
    subjects: Subjects = {}
    count = len(slopes)
    for name, (operation, reference) in pairs.items():
        both = train(operation, inputs), train(reference, wide)
        found, expected = (Results(tensors[:count], tensors[count:]) for tensors in both)
        errors = check(name, case, found, expected)
        subjects[name] = functools.partial(run, operation, inputs), model, errors
    return subjects
