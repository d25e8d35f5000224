"""GroupNorm + ReLU as a part of torch: modules, compilers, traces, and what is kept."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gnws_d2.projects.acceleration import GroupNormReLU, group_norm_relu

ADDED = pytest.mark.parametrize("added", [False, True])


@pytest.fixture(autouse=True, scope="module")
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def inputs(shape, added=False):
    """x, weight, bias, residual or None: leaves that ask for a gradient."""
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, shape[1:2], shape[1:2], shape if added else None]
    return [s and torch.randn(s, generator=generator).requires_grad_() for s in sizes]


def fused(x, weight, bias, residual=None, num_groups=3):
    return group_norm_relu(x, num_groups, weight, bias, 1e-5, residual)


def test_a_second_derivative_is_refused():
    x, weight, bias, _ = inputs((2, 6, 3, 5))
    (grad,) = torch.autograd.grad(fused(x, weight, bias).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_the_module_is_a_group_norm_followed_by_relu():
    torch.manual_seed(0)
    plain, module = nn.GroupNorm(3, 6), GroupNormReLU(3, 6)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    module.load_state_dict(plain.state_dict())
    x, residual = torch.randn(2, 2, 6, 3, 3)
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                torch.testing.assert_close(copied(x), plain(x).relu())
                torch.testing.assert_close(copied(x, residual), (plain(x) + residual).relu())


def test_traces_and_exported_programs_have_the_separate_operations():
    module = GroupNormReLU(3, 6)
    x, residual = torch.randn(2, 2, 6, 3, 3)
    traced = torch.jit.trace(module, (x, residual))
    program = torch.export.export(module, (x, residual))
    for code in (str(traced.inlined_graph), program.graph_module.code):
        assert "group_norm" in code and "gnws_d2::" not in code
    for loaded in (traced, program.module()):
        torch.testing.assert_close(loaded(x, residual), module(x, residual))


@ADDED
def test_no_more_is_kept_than_by_stock(added):
    """x, and for the addition y; never a third tensor of that size."""
    kept = []
    leaves = inputs((2, 6, 9, 9), added)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fused(*leaves)
    assert sum(t.shape == leaves[0].shape for t in kept) == 1 + added


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
