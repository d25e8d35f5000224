"""The layer against a float64 formula written here, finite differences, and its edge cases."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gnws_d2.layers import WSConv2d, standardize_weight

SHAPES = [(1, 2, 1, 1), (4, 3, 7, 7), (8, 16, 1, 1), (6, 1, 3, 3), (5, 4, 3), (3, 2, 2, 3, 2)]


def reference(weight: torch.Tensor, eps: float = 1e-5) -> np.ndarray:
    """(w - mean) / (std + eps) filter by filter, in float64 and by sums alone."""
    out = np.empty(weight.shape)
    for i, filt in enumerate(weight.detach().double().numpy()):
        n = filt.size
        mean = filt.sum() / n
        std = (((filt - mean) ** 2).sum() / (n - 1)) ** 0.5
        out[i] = (filt - mean) / (std + eps)
    return out


def relative_error(value: torch.Tensor, expected: np.ndarray) -> float:
    return np.linalg.norm(value.detach().double().numpy() - expected) / np.linalg.norm(expected)


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
    assert relative_error(out, reference(weight)) < tolerance


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
    assert relative_error(standardize_weight(weight, eps), reference(weight, eps)) < tolerance


def test_is_not_the_biased_variant():
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    biased = F.batch_norm(weight.view(1, 4, -1), None, None, training=True, eps=1e-5)
    assert relative_error(standardize_weight(weight), biased.view_as(weight).numpy()) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize_weight, (weight,))
    assert torch.autograd.gradgradcheck(standardize_weight, (weight,))


def test_gradient_is_unchanged_by_a_shift_of_a_filter():
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(weight)
    standardize_weight(weight).backward(grad)
    assert weight.grad.sum((1, 2, 3)).abs().max() < 1e-12 * weight.grad.abs().max()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e4, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_filters_stay_finite(value, dtype):
    weight = torch.randn(3, 8, 3, 3).to(dtype)
    weight[1] = value
    weight.requires_grad_()
    out = standardize_weight(weight)
    out.backward(torch.randn_like(out))
    assert out.isfinite().all() and weight.grad.isfinite().all()
    # A value whose sum rounds leaves a deviation of its last digit, never more than one filter's.
    assert out[1].abs().max() < 3


def test_nearly_constant_filters_stay_finite():
    weight = torch.ones(4, 16, 3, 3)
    weight[:, 0, 0, 0] += torch.tensor([1e-7, 1e-6, 1e-3, 1e-38])
    weight.requires_grad_()
    out = standardize_weight(weight)
    out.backward(torch.randn_like(out))
    assert out.isfinite().all() and weight.grad.isfinite().all()


def test_only_two_numbers_a_filter_are_kept_for_backward():
    weight = torch.randn(16, 8, 3, 3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        standardize_weight(weight)
    extra = [t for t in kept if t.data_ptr() != weight.data_ptr()]
    assert sum(t.numel() for t in extra) == 2 * 16


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (3, 1)])
def test_a_fan_in_of_one_is_refused(shape):
    with pytest.raises(ValueError, match="fan-in of 1"):
        standardize_weight(torch.randn(shape))


def test_a_depthwise_1x1_convolution_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 1, 1, 1\).*fan-in of 1"):
        WSConv2d(8, 8, 1, groups=8)


CONVS = [
    dict(in_channels=6, out_channels=8, kernel_size=3, padding=1),
    dict(in_channels=6, out_channels=8, kernel_size=3, stride=2, dilation=2, padding=2, bias=False),
    dict(in_channels=6, out_channels=4, kernel_size=(1, 3), groups=2, padding=(0, 1)),
    dict(in_channels=6, out_channels=6, kernel_size=3, groups=6, padding="same"),
    dict(in_channels=6, out_channels=8, kernel_size=3, padding=1, padding_mode="reflect"),
]


@pytest.mark.parametrize("arguments", CONVS)
def test_convolution_is_that_of_torch_with_a_standardized_weight(arguments):
    torch.manual_seed(0)
    conv = WSConv2d(**arguments).double()
    plain = nn.Conv2d(**arguments).double()
    plain.load_state_dict(conv.state_dict())  # the same names and shapes
    plain.weight.data = torch.from_numpy(reference(conv.weight))
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-12, atol=1e-12)


def test_norm_and_activation_are_applied_in_order():
    conv = WSConv2d(3, 32, 3, norm=nn.GroupNorm(32, 32), activation=torch.relu)
    x = torch.randn(1, 3, 8, 8)
    expected = F.conv2d(x, standardize_weight(conv.weight), conv.bias)
    torch.testing.assert_close(conv(x), torch.relu(conv.norm(expected)))


def test_an_empty_batch_has_the_output_shape_and_zero_gradients():
    conv = WSConv2d(3, 32, 3, stride=2, norm=nn.GroupNorm(32, 32), activation=nn.ReLU())
    out = conv(torch.zeros(0, 3, 9, 9))
    assert out.shape == (0, 32, 4, 4)
    out.sum().backward()
    assert all((p.grad == 0).all() for p in conv.parameters())


def test_autocast_standardizes_in_float32():
    conv = WSConv2d(16, 8, 3, bias=False)
    x = torch.randn(1, 16, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
        weight = standardize_weight(conv.weight)
    assert out.dtype == torch.bfloat16
    assert weight.dtype == torch.float32
    assert relative_error(weight, reference(conv.weight)) < 1e-6
    out.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32 and conv.weight.grad.isfinite().all()


def test_channels_last_in_and_out():
    conv = WSConv2d(16, 8, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last)
    assert standardize_weight(conv.weight).is_contiguous(memory_format=torch.channels_last)
    out = conv(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    nchw = copy.deepcopy(conv).to(memory_format=torch.contiguous_format)(x.contiguous())
    torch.testing.assert_close(out, nchw, rtol=1e-5, atol=1e-5)


def test_state_dict_is_the_plain_convolution_s():
    conv, plain = WSConv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    assert list(conv.state_dict()) == list(plain.state_dict()) == ["weight", "bias"]
    before = conv.weight.clone()
    conv(torch.randn(1, 4, 5, 5))
    assert torch.equal(conv.state_dict()["weight"], before)


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
