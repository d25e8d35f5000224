"""Triton's kernels of Weight Standardization against the formula in float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_interpreter import (
    DEVICE,
    INTERPRETED,
    compile_for_h100,
    only_from_outside,
    run_interpreted,
    runs,
)

from gnws_d2.layers import WSConv2d, WSConvTranspose2d, kernels, standardize_weight

triton = pytest.importorskip("triton")
EPS = 1e-5
# Relative, of the whole tensor: the rounding of what is written, and of the sums.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.slow
@only_from_outside
def test_through_the_interpreter():
    run_interpreted(__file__)


@pytest.fixture(autouse=True)
def triton_chosen(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)


def formula(weight):
    rows = weight.flatten(1)
    mean = rows.sum(1, keepdim=True) / rows.shape[1]
    std = ((rows - mean).square().sum(1, keepdim=True) / (rows.shape[1] - 1)).sqrt()
    return ((rows - mean) / (std + EPS)).view_as(weight), mean, std


def inputs(shape, dtype=torch.float32, format=torch.contiguous_format, mean=0.3, deviation=1.0):
    """A weight, and the gradient of its standardized form."""
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=generator) * deviation + mean
    grad = torch.randn(shape, generator=generator)
    weight, grad = weight.to(DEVICE, dtype), grad.to(DEVICE, dtype)
    if len(shape) == 4:
        weight = weight.contiguous(memory_format=format)
    return weight, grad


def expected(weight, grad):
    """The standardized weight, mean, std, and the gradient, in float64."""
    wide = weight.detach().double().requires_grad_()
    standardized, mean, std = formula(wide)
    return *(t.detach() for t in (standardized, mean, std)), *torch.autograd.grad(
        standardized, wide, grad.double()
    )


def found(weight, grad, dtype=None):
    from gnws_d2.layers.kernels.standardize import standardize, weight_gradient

    standardized, mean, std = standardize(weight, EPS, dtype or weight.dtype)
    return standardized, mean, std, weight_gradient(grad, weight, mean, std, EPS)


def assert_close(a, b, tolerance):
    assert (a.double() - b).norm() <= tolerance * b.norm()


shapes = st.one_of(
    st.tuples(*[st.integers(1, 9)] * 4),
    st.tuples(st.integers(1, 9), st.integers(1, 70), st.just(1), st.just(1)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    st.tuples(*[st.integers(1, 3)] * 5),
).filter(lambda shape: torch.Size(shape[1:]).numel() > 1)


@runs
@settings(max_examples=40, deadline=None, derandomize=True)
@example((2, 5000, 1, 1), torch.float32, torch.float32, torch.contiguous_format)  # in two parts
@example((2, 1025, 2, 2), torch.float32, torch.bfloat16, torch.channels_last)
@example((1, 2, 1, 1), torch.float16, torch.float16, torch.contiguous_format)
@given(shapes, *[st.sampled_from(list(TOLERANCE))] * 2, st.sampled_from(FORMATS))
def test_results_are_those_of_the_formula(shape, dtype, result_dtype, format):
    weight, grad = inputs(shape, dtype, format)
    standardized, mean, std, grad_weight = found(weight, grad, result_dtype)
    exact, exact_mean, exact_std, exact_grad = expected(weight, grad)
    assert standardized.dtype == result_dtype and grad_weight.dtype == dtype
    assert standardized.stride() == grad_weight.stride() == weight.stride()
    assert mean.shape == std.shape == (len(weight),) + (1,) * (weight.dim() - 1)
    assert_close(standardized, exact, TOLERANCE[result_dtype])
    assert_close(mean.flatten(1), exact_mean, 1e-6)
    assert_close(std.flatten(1), exact_std, 1e-6)
    # With a fan-in of 2 it is all but nothing: a difference of numbers that are nearly the same.
    scale = (grad.double().flatten(1) / (exact_std + EPS)).norm()
    assert (grad_weight.double() - exact_grad).norm() <= 2 * TOLERANCE[dtype] * scale


@runs
@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_a_large_mean_costs_no_more_than_the_rounding_of_the_weight(mean):
    weight, grad = inputs((6, 300, 1, 1), mean=mean)
    standardized, _, _, grad_weight = found(weight, grad)
    exact, _, _, exact_grad = expected(weight, grad)
    assert_close(standardized, exact, 1e-7 * mean)
    assert_close(grad_weight, exact_grad, 1e-7 * mean)


@runs
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e4, 1e-30])
def test_constant_filters_stay_finite(value):
    weight, grad = inputs((3, 8, 3, 3))
    weight[1] = value
    weight[2, 1:] = 0
    weight[2, 0] = 1e-30
    standardized, _, _, grad_weight = found(weight, grad)
    assert standardized.isfinite().all() and grad_weight.isfinite().all()
    assert standardized[1].abs().max() < 3


@runs
def test_a_second_run_gives_the_same_bits():
    weight, grad = inputs((7, 40, 3, 3))
    for a, b in zip(found(weight, grad), found(weight, grad), strict=True):
        assert torch.equal(a, b)


@runs
def test_another_layout_of_the_gradient_is_taken():
    weight, grad = inputs((4, 6, 3, 3))
    last = grad.contiguous(memory_format=torch.channels_last)
    strided = torch.stack([weight, weight], 4)[..., 0]
    for a, b in zip(found(weight, grad), found(strided, last), strict=True):
        assert torch.equal(a, b)


@runs
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_convolution_trains_by_them(format, autocast, caplog):
    caplog.set_level("INFO")
    kernels._log_path.cache_clear()
    torch.manual_seed(0)
    conv = WSConv2d(8, 6, 3, padding=1).to(DEVICE, memory_format=format)
    x = torch.randn(2, 8, 7, 5, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        out = conv(x)
    # The same gradient for both: bfloat16 would round it otherwise.
    slope = torch.randn(out.shape, device=DEVICE).bfloat16()
    grads = torch.autograd.grad(out, [x, conv.weight, conv.bias], slope.to(out.dtype))
    wide = [t.detach().double().requires_grad_() for t in (x, conv.weight, conv.bias)]
    exact = torch.nn.functional.conv2d(wide[0], formula(wide[1])[0], wide[2], padding=1)
    exact_grads = torch.autograd.grad(exact, wide, slope.double())
    tolerance = 1e-2 if autocast else 2e-6
    assert_close(out, exact, tolerance)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        assert_close(grad, exact_grad, tolerance)
    lines = [r.getMessage() for r in caplog.records if "Standardization in" in r.getMessage()]
    assert lines == [f"Weight Standardization in training on {DEVICE} by the kernels of Triton"]


@runs
def test_second_derivatives_are_those_of_the_formula():
    weight, _ = inputs((4, 5, 3, 3), deviation=0.1)
    found = []
    for function, w in (
        (standardize_weight, weight.requires_grad_()),
        (lambda w: formula(w)[0], weight.detach().double().requires_grad_()),
    ):
        (grad,) = torch.autograd.grad(function(w).pow(3).sum(), w, create_graph=True)
        found += torch.autograd.grad(grad.square().sum(), w)
    assert_close(found[0], found[1], 1e-4)


@runs
def test_a_transposed_convolution_trains_by_them():
    torch.manual_seed(0)
    conv = WSConvTranspose2d(4, 6, 3, groups=2).to(DEVICE)
    x = torch.randn(1, 4, 5, 5, device=DEVICE)
    (grad,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    double = conv.double()
    (exact,) = torch.autograd.grad(double(x.double()).square().sum(), double.weight)
    assert_close(grad, exact, 1e-5)


@runs
def test_what_the_kernels_do_not_take_goes_to_torch(monkeypatch):
    weight, _ = inputs((4, 5, 3, 3))
    assert kernels.take_weight(weight) and kernels.take_weight(torch.nn.Parameter(weight))
    assert not kernels.take_weight(weight.double())
    assert not kernels.take_weight(weight[:0])

    class Other(torch.Tensor):
        pass

    assert not kernels.take_weight(weight.as_subclass(Other))
    monkeypatch.setenv(kernels.VARIABLE, "torch")
    assert not kernels.take_weight(weight)
    assert_close(standardize_weight(weight.requires_grad_()), expected(weight, weight)[0], 1e-6)


@only_from_outside
def test_where_triton_does_not_run_torch_does(monkeypatch, caplog):
    """As on a GPU that it does not know, or without a C compiler."""
    from gnws_d2.layers.kernels import standardize  # noqa: F401  before it could be interpreted

    weight = torch.randn(4, 5, 3, 3)
    kernels._works.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not kernels.take_weight(weight)
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "do not run on cpu" in line and "GNWS_D2_KERNELS=torch" in line
    kernels._works.cache_clear()


@runs
def test_they_are_tried_in_float32_whatever_the_default_is():
    kernels._works.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(
            kernels.run_on(what, torch.device(DEVICE)) for what in (kernels.MAP, kernels.WEIGHT)
        )
    finally:
        torch.set_default_dtype(torch.float32)
        kernels._works.cache_clear()


@runs
def test_where_triton_computes_something_else_torch_does(monkeypatch, caplog):
    from gnws_d2.layers.kernels import standardize

    right = standardize.standardize
    weight, _ = inputs((4, 5, 3, 3))
    monkeypatch.setattr(standardize, "standardize", lambda w, *args: right(w * 2, *args))
    kernels._works.cache_clear()
    assert not kernels.take_weight(weight)
    assert "do not run" in caplog.text and "not close" in caplog.text
    kernels._works.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("block", [2, 4096])
def test_the_kernels_compile_for_a_gpu(dtype, block):
    from gnws_d2.layers.kernels import standardize

    types = dict.fromkeys(["weight", "grad_weight", "mean", "std"], "*fp32") | {"eps": "fp32"}
    types |= dict.fromkeys(["standardized", "grad"], f"*{dtype}")
    for kernel in (standardize._standardize, standardize._weight_gradient):
        compile_for_h100(kernel, types, {"BLOCK": block})
