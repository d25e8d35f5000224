"""Standardization, and standardization and convolution as one function, against a float64 formula
written here, finite differences, and their edge cases."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, hessian, jacrev, vmap
from torch.nn import functional as F

from gnws_d2.layers import WSConv2d, standardize_weight
from gnws_d2.layers.weight_standardization import standardized_convolution

EPS = 1e-5
SHAPES = [(1, 2, 1, 1), (4, 3, 7, 7), (8, 16, 1, 1), (6, 1, 3, 3), (5, 4, 3), (3, 2, 2, 3, 2)]
# input, weight, (stride, padding, dilation, groups)
CASES = [
    ((2, 4, 9), (6, 4, 3), ((2,), (1,), (1,), 1)),
    ((2, 4, 7, 6), (6, 4, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    ((1, 4, 9, 8), (6, 2, 3, 2), ((2, 1), (0, 2), (2, 1), 2)),
    ((3, 4, 5, 5), (6, 4, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    ((1, 2, 5, 6, 4), (3, 2, 3, 3, 2), ((1, 2, 1), (1, 1, 0), (1, 1, 1), 1)),
]
CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def reference(weight: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """(w - mean) / (std + eps) of each filter, in float64 and by sums alone."""
    rows = weight.double().flatten(1)
    mean = rows.sum(1, keepdim=True) / rows.shape[1]
    std = ((rows - mean).square().sum(1, keepdim=True) / (rows.shape[1] - 1)).sqrt()
    return ((rows - mean) / (std + eps)).view(weight.shape)


def formula(x, weight, bias, geometry):
    return CONVOLUTIONS[x.dim()](x, reference(weight), bias, *geometry)


@torch.no_grad()
def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative one."""
    return ((value.double() - expected).norm() / expected.norm()).item()


def tensors(x_shape, weight_shape, dtype=torch.float64):
    torch.manual_seed(0)
    x, weight = torch.randn(x_shape), torch.randn(weight_shape) * 0.1 + 0.02
    made = (x, weight, torch.randn(weight_shape[0]))
    return tuple(tensor.to(dtype).requires_grad_() for tensor in made)


def outcome(function, inputs, *arguments):
    """The output and the gradients of the inputs, for the same gradient of the output."""
    out = function(*inputs, *arguments)
    torch.manual_seed(1)
    grad = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return out, *torch.autograd.grad(out, inputs, grad)


def exact_outcome(inputs, geometry):
    return outcome(formula, [t.detach().double().requires_grad_() for t in inputs], geometry)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)],
)
def test_formula(shape, requires_grad, dtype, tolerance):
    torch.manual_seed(0)
    weight = (torch.randn(shape) * 3 + 0.5).to(dtype).requires_grad_(requires_grad)
    out = standardize_weight(weight)
    assert out.dtype == dtype and out.shape == weight.shape
    assert error(out, reference(weight)) < tolerance


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4).filter(lambda s: np.prod(s[1:]) > 1),
    scale=st.floats(1e-4, 1e4),
    shift=st.floats(-10, 10),
    eps=st.floats(1e-8, 1e-1),
    seed=st.integers(0, 2**31),
)
def test_formula_on_any_shape_and_scale(shape, scale, shift, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
    # The values themselves are only exact to 1e-16 of their size, the deviation can be smaller.
    tolerance = 1e-13 * (1 + abs(shift) / scale)
    assert error(standardize_weight(weight, eps), reference(weight, eps)) < tolerance


@pytest.mark.parametrize("shape", SHAPES)
def test_first_and_second_derivatives(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize_weight, (weight,))
    assert torch.autograd.gradgradcheck(standardize_weight, (weight,))


@pytest.mark.parametrize("off", [0.0, 1e-38, 1e-7, 1e-6, 1e-3])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e4, 1e-30, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_and_nearly_constant_filters_stay_finite(value, off, dtype):
    weight = torch.randn(3, 8, 3, 3).to(dtype)
    weight[1] = value
    weight[1, 0, 0, 0] += off
    weight.requires_grad_()
    out = standardize_weight(weight)
    out.backward(torch.randn_like(out))
    assert out.isfinite().all() and weight.grad.isfinite().all()
    if not off:
        # A value whose sum rounds leaves a deviation of its last digit, never more than a filter's.
        assert out[1].abs().max() < 3


@pytest.mark.parametrize(("x_shape", "weight_shape", "geometry"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_and_its_gradients_are_the_formula_s(
    x_shape, weight_shape, geometry, dtype, tolerance, channels_last
):
    x, weight, bias = tensors(x_shape, weight_shape, dtype)
    if channels_last and x.dim() == 4:
        # to(), as of a module: contiguous() leaves the strides of a 1x1 weight as they are.
        x, weight = (
            t.detach().to(memory_format=torch.channels_last, copy=True).requires_grad_()
            for t in (x, weight)
        )
        assert weight.stride(3) == weight.shape[1]
    ours = outcome(standardized_convolution, (x, weight, bias), geometry, EPS)
    if channels_last and x.dim() == 4:
        for tensor in (ours[0], standardize_weight(weight)):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(ours, exact_outcome((x, weight, bias), geometry), strict=True):
        assert a.dtype == dtype and error(a, b) <= tolerance


@pytest.mark.parametrize(("x_shape", "weight_shape", "geometry"), CASES)
def test_first_and_second_derivatives_of_the_convolution(x_shape, weight_shape, geometry):
    def function(*inputs):
        return standardized_convolution(*inputs, geometry, EPS)

    inputs = tensors(x_shape, weight_shape)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


FUNC = {
    "grad": lambda loss, x, w: grad(loss, (0, 1))(x[0], w),
    "vmap": lambda loss, x, w: vmap(loss, (None, 0))(x[0], torch.stack([w, 2 * w])),
    "each image": lambda loss, x, w: vmap(grad(loss, 1), (0, None))(x, w),
    "jacrev": lambda loss, x, w: jacrev(loss, 1)(x[0], w),
    "forward over reverse": lambda loss, x, w: hessian(loss, 1)(x[0], w),
    "grad of grad": lambda loss, x, w: grad(lambda w: grad(loss, 1)(x[0], w).norm())(w),
    "outside": lambda loss, x, w: torch.autograd.grad(vmap(loss, (0, None))(x, w).sum(), w)[0],
    "batch": lambda loss, x, w: torch.autograd.functional.jacobian(
        lambda w: torch.stack([loss(y, w) for y in x]), w, vectorize=True
    ),
}


@pytest.mark.parametrize("transform", FUNC.values(), ids=FUNC)
def test_transforms_of_torch_func_are_the_formula_s(transform):
    """In training: none of them knows the rules of an autograd function without setup_context."""
    conv = WSConv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    x, weight, _ = tensors((3, 2, 4, 5, 5), conv.weight.shape)

    def ours(x, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x,)).pow(3).sum()

    def expected(x, weight):
        return formula(x, weight, conv.bias, geometry).pow(3).sum()

    torch.testing.assert_close(transform(ours, x, weight), transform(expected, x, weight))


@pytest.mark.parametrize(("convolves", "expected"), [(False, []), (True, [8 * 6 * 6])])
def test_five_numbers_a_filter_and_the_input_are_kept_for_backward(convolves, expected):
    conv, kept = WSConv2d(8, 4, 3, padding=1), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        if convolves:
            conv(torch.randn(1, 8, 6, 6, requires_grad=True))
        else:
            standardize_weight(conv.weight)
    of_weight = conv.weight.data_ptr()
    assert sorted(t.numel() for t in kept if t.data_ptr() != of_weight) == expected
    assert not convolves or sum(t.numel() for t in conv._kept.value[:5]) == 5 * 4


def test_only_the_gradients_asked_for_are_computed():
    x, weight, _ = tensors(*CASES[1][:2])
    out = standardized_convolution(x.detach(), weight, None, CASES[1][2], EPS)
    out.sum().backward()
    assert x.grad is None and weight.grad is not None


def test_autocast_standardizes_in_float32_and_convolves_in_bfloat16():
    """Gradients have the parameters' own dtype."""
    inputs, geometry = tensors((2, 8, 7, 6), (6, 8, 3, 3), torch.float32), CASES[1][2]
    with torch.autocast("cpu", torch.bfloat16):
        weight = standardize_weight(inputs[1])
        assert weight.dtype == torch.float32 and error(weight, reference(inputs[1])) < 1e-6
        out, *grads = outcome(standardized_convolution, inputs, geometry, EPS)
    assert out.dtype == torch.bfloat16
    _, *exact = exact_outcome(inputs, geometry)
    for a, b in zip(grads, exact, strict=True):
        assert a.dtype == torch.float32 and error(a, b) <= 1e-2


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


def test_norm_and_activation_are_applied_in_order_and_to_an_empty_batch():
    conv = WSConv2d(3, 32, 3, stride=2, norm=nn.GroupNorm(32, 32), activation=torch.relu)
    x = torch.randn(1, 3, 9, 9)
    expected = F.conv2d(x, standardize_weight(conv.weight), conv.bias, 2)
    torch.testing.assert_close(conv(x), torch.relu(conv.norm(expected)))
    out = conv(x[:0])
    assert out.shape == (0, 32, 4, 4)
    out.sum().backward()
    assert all((p.grad == 0).all() for p in conv.parameters())


@pytest.mark.slow
def test_layers_import_without_detectron2(tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ModuleNotFoundError('hidden')")
    program = (
        "import sys, warnings; warnings.simplefilter('ignore');"
        f"sys.path.insert(0, {str(tmp_path)!r});"
        "import gnws_d2.layers as layers, torch;"
        "print(layers.WSConv2d(3, 4, 3)(torch.zeros(1, 3, 3, 3)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[1, 4, 1, 1]" in done.stdout
