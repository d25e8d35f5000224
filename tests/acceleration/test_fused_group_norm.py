"""GroupNorm + ReLU as a part of torch: modules, compilers, traces, and what is kept."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gnws_d2.projects.acceleration import GroupNormReLU, group_norm_relu


def fused(x, weight, bias, residual=None):
    return group_norm_relu(x, 3, weight, bias, 1e-5, residual)


def test_a_second_derivative_is_refused():
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((2, 6, 3, 5), (6,), (6,)))
    (grad,) = torch.autograd.grad(fused(x, weight, bias).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_the_module_is_a_group_norm_followed_by_relu():
    """Traces and exported programs have the separate operations."""
    torch.manual_seed(0)
    plain, module = nn.GroupNorm(3, 6), GroupNormReLU(3, 6)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    module.load_state_dict(plain.state_dict())
    x, residual = torch.randn(2, 2, 6, 3, 3)
    traced = torch.jit.trace(module, (x, residual))
    program = torch.export.export(module, (x, residual))
    for code in (str(traced.inlined_graph), program.graph_module.code):
        assert "group_norm" in code and "gnws_d2::" not in code
    expected = (plain(x) + residual).relu()
    for run in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                torch.testing.assert_close(run(x), plain(x).relu())
                torch.testing.assert_close(run(x, residual), expected)
    for run in (traced, program.module()):
        torch.testing.assert_close(run(x, residual), expected)


@pytest.mark.parametrize("added", [False, True])
def test_no_more_is_kept_than_by_stock(added):
    """x, and for the addition y; never a third tensor of that size."""
    kept = []
    x, residual = torch.randn(2, 2, 6, 9, 9).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fused(x, torch.ones(6), torch.zeros(6), residual if added else None)
    assert sum(t.shape == x.shape for t in kept) == 1 + added


@pytest.mark.parametrize(
    ("shapes", "device", "said"),
    [
        (((2, 7, 3), (7,), (7,), None), "cpu", "multiple of num_groups, 3"),
        (((6,), (6,), (6,), None), "cpu", r"takes \(N, C"),
        (((2, 6, 3), (5,), (6,), None), "cpu", "weight of shape"),
        (((2, 6, 3), (6,), (1,), None), "cpu", "bias of shape"),
        (((2, 6, 3), (6,), (6,), (2, 6, 1)), "cpu", r"residual of shape \(2, 6, 3\)"),
        (((2, 6, 3), (6,), (6,), None), "meta", "on cpu, as x, but it is .* on meta"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, device, said):
    x, *others = (s and torch.zeros(s) for s in shapes)
    with pytest.raises(ValueError, match=said):
        fused(x, *(t if t is None else t.to(device) for t in others))
