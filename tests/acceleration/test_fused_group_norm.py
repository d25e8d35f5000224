"""GroupNorm + ReLU as one operation, on torch's kernels."""

import copy
import pickle

import pytest
import torch
from group_norm_formula import EPS, FORMATS, formula
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gnws_d2.projects.acceleration import GroupNormReLU, group_norm_relu
from gnws_d2.projects.acceleration.fused_group_norm import _group_norm_relu

ADDED = pytest.mark.parametrize("added", [False, True])


@pytest.fixture(autouse=True, scope="module")
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def inputs(shape, added=False, **kwargs):
    """x, weight, bias, residual or None: leaves that ask for a gradient."""
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, shape[1:2], shape[1:2], shape if added else None]
    return [s and torch.randn(s, generator=generator).to(**kwargs).requires_grad_() for s in sizes]


def fused(x, weight, bias, residual=None, num_groups=3):
    return group_norm_relu(x, num_groups, weight, bias, EPS, residual)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 3),
    st.sampled_from([(1, 1), (3, 1), (3, 4), (2, 5)]),
    st.lists(st.integers(1, 9), max_size=3),
    st.booleans(),
    st.sampled_from(FORMATS),
)
def test_results_are_those_of_the_formula(n, groups, area, added, format):
    num_groups, per_group = groups
    x, weight, bias, residual = inputs((n, num_groups * per_group, *area), added)
    if len(area) == 2:
        x = x.detach().contiguous(memory_format=format).requires_grad_()
    leaves = [t for t in (x, weight, bias, residual) if t is not None]
    y = fused(x, weight, bias, residual, num_groups)
    y64 = formula(x, weight, bias, residual, num_groups)
    assert y.stride() == x.stride() or not n  # an empty tensor has both formats
    torch.testing.assert_close(y, y64, rtol=1e-12, atol=1e-11)
    grad = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(out, leaves, grad) for out in (y, y64))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


@ADDED
@pytest.mark.parametrize("format", FORMATS)
def test_it_is_a_proper_operator(added, format):
    x, weight, bias, residual = inputs((2, 6, 3, 5), added)
    x = x.detach().contiguous(memory_format=format).requires_grad_()
    torch.library.opcheck(_group_norm_relu, (x, weight, bias, residual, 3, EPS))
    assert torch.autograd.gradcheck(
        fused, [t for t in (x, weight, bias, residual) if t is not None]
    )


def test_a_second_derivative_is_refused():
    x, weight, bias, _ = inputs((2, 6, 3, 5))
    (grad,) = torch.autograd.grad(fused(x, weight, bias).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_compilers_take_it_without_a_break():
    leaves = inputs((2, 6, 3, 5), added=True)
    module = GroupNormReLU(3, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for residual in (None, leaves[3]):
        y, expected = compiled(leaves[0], residual), module(leaves[0], residual)
        assert torch.equal(y, expected)
        ours, theirs = (torch.autograd.grad(t.square().sum(), leaves[0]) for t in (y, expected))
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("format", FORMATS)
def test_a_large_mean(format):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 64, 56, 56, generator=generator) + 1e4).float()
    x = x.contiguous(memory_format=format)
    y = group_norm_relu(x, 32, torch.ones(64).float(), torch.zeros(64).float())
    expected = formula(x.double(), torch.ones(64), torch.zeros(64), None, 32)
    assert (y - expected).abs().max() < 3e-3  # numbers of this size are 1e-3 apart


@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_a_constant_input_has_a_finite_gradient(value):
    x = torch.full((2, 6, 5, 7), value).float().requires_grad_()
    weight, bias = (t.float().detach().requires_grad_() for t in inputs((2, 6))[1:3])
    y = fused(x, weight, bias)
    # The rounding of the value is multiplied by the inverse deviation, 1 / sqrt(eps).
    error = torch.finfo(x.dtype).eps * abs(value) / EPS**0.5 * weight.abs().max()
    assert (y - bias.relu().view(1, 6, 1, 1)).abs().max() <= error
    y.sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, weight, bias))


@ADDED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_statistics_in_float32(dtype, added):
    x, weight, bias, residual = inputs((2, 6, 9, 7), added, dtype=torch.float32)
    x = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):  # changes nothing
        y = fused(x, weight, bias, residual)
    assert y.dtype == dtype
    wide = [t if t is None else t.detach().double() for t in (x, weight, bias, residual)]
    error = (y.double() - formula(*wide, 3)).abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    y.sum().backward()
    leaves = [t for t in (x, weight, bias, residual) if t is not None]
    assert [t.grad.dtype for t in leaves] == [t.dtype for t in leaves]


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
