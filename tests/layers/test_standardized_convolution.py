"""Standardization and convolution as one function: against torch's convolution of a weight
standardized by the formula in float64, finite differences, and what it keeps."""

import pytest
import torch
from torch.nn import functional as F

from gnws_d2.layers import WSConv2d
from gnws_d2.layers.standardized_convolution import standardized_convolution

EPS = 1e-5
# input, weight, (stride, padding, dilation, groups)
CASES = [
    ((2, 4, 9), (6, 4, 3), ((2,), (1,), (1,), 1)),
    ((2, 4, 7, 6), (6, 4, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    ((1, 4, 9, 8), (6, 2, 3, 2), ((2, 1), (0, 2), (2, 1), 2)),
    ((3, 4, 5, 5), (6, 4, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    ((1, 2, 5, 6, 4), (3, 2, 3, 3, 2), ((1, 2, 1), (1, 1, 0), (1, 1, 1), 1)),
]
CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def formula(x, weight, bias, geometry):
    rows = weight.flatten(1)
    mean = rows.sum(1, keepdim=True) / rows.shape[1]
    std = ((rows - mean).square().sum(1, keepdim=True) / (rows.shape[1] - 1)).sqrt()
    standardized = ((rows - mean) / (std + EPS)).view_as(weight)
    return CONVOLUTIONS[x.dim()](x, standardized, bias, *geometry)


def tensors(x_shape, weight_shape, dtype=torch.float64):
    torch.manual_seed(0)
    made = (
        torch.randn(x_shape),
        torch.randn(weight_shape) * 0.1 + 0.02,
        torch.randn(weight_shape[0]),
    )
    return tuple(tensor.to(dtype).requires_grad_() for tensor in made)


def outcome(function, inputs, *arguments):
    """The output and the gradients of the inputs, for the same gradient of the output."""
    out = function(*inputs, *arguments)
    torch.manual_seed(1)
    grad = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return out, *torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize(("x_shape", "weight_shape", "geometry"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_output_and_gradients_are_the_formula_s(
    x_shape, weight_shape, geometry, dtype, channels_last
):
    inputs = tensors(x_shape, weight_shape, dtype)
    if channels_last:
        if len(x_shape) != 4:
            pytest.skip("channels_last is of four dimensions")
        x, weight, bias = inputs
        # to(), as of a module: contiguous() leaves the strides of a 1x1 weight as they are.
        x, weight = (
            t.detach().to(memory_format=torch.channels_last, copy=True).requires_grad_()
            for t in (x, weight)
        )
        assert weight.stride(3) == weight.shape[1]
        inputs = (x, weight, bias)
    exact = outcome(formula, [t.detach().double().requires_grad_() for t in inputs], geometry)
    ours = outcome(standardized_convolution, inputs, geometry, EPS)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize(("x_shape", "weight_shape", "geometry"), CASES)
def test_first_and_second_derivatives(x_shape, weight_shape, geometry):
    def function(*inputs):
        return standardized_convolution(*inputs, geometry, EPS)

    inputs = tensors(x_shape, weight_shape)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_it_keeps_the_input_and_two_numbers_a_filter():
    conv = WSConv2d(8, 4, 3, padding=1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        conv(torch.randn(1, 8, 6, 6, requires_grad=True))
    sizes = sorted(tensor.numel() for tensor in kept if tensor is not conv.weight)
    assert sizes == [4, 4, 8 * 6 * 6]


def test_only_the_gradients_asked_for_are_computed():
    x, weight, _ = tensors(*CASES[1][:2])
    out = standardized_convolution(x.detach(), weight, None, CASES[1][2], EPS)
    out.sum().backward()
    assert x.grad is None and weight.grad is not None


def test_gradients_under_autocast():
    """Standardized in float32, convolved in bfloat16, gradients in the parameters' own dtype."""
    x, weight, bias = inputs = tensors((2, 8, 7, 6), (6, 8, 3, 3), torch.float32)
    geometry = CASES[1][2]
    exact = outcome(formula, [t.detach().double().requires_grad_() for t in inputs], geometry)
    with torch.autocast("cpu", torch.bfloat16):
        out = standardized_convolution(*inputs, geometry, EPS)
    assert out.dtype == torch.bfloat16
    torch.manual_seed(1)
    grad = torch.randn(out.shape, dtype=torch.float64).to(torch.bfloat16)
    grads = torch.autograd.grad(out, inputs, grad)
    for a, b, like in zip(grads, exact[1:], (x, weight, bias), strict=True):
        assert a.dtype == like.dtype
        assert (a.double() - b).norm() <= 1e-2 * b.norm()


@pytest.mark.parametrize("parameter", ["weight", "bias", "input"])
def test_compiled_gradients_are_the_eager_ones(parameter):
    conv = WSConv2d(4, 6, 3, padding=1).double()
    with torch.no_grad():
        conv.weight[1] = 0.5  # no variance
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    grads = []
    for module in (conv, torch.compile(conv, backend="aot_eager", fullgraph=True)):
        inputs = {"weight": conv.weight, "bias": conv.bias, "input": x}
        grads += torch.autograd.grad(module(x).square().sum(), inputs[parameter])
    assert grads[0].norm() > 0
    torch.testing.assert_close(grads[1], grads[0])
