"""GroupNorm + ReLU by torch's kernels and by Triton's, against the formula in float64.

Triton's run on a GPU, and elsewhere through Triton's interpreter. That is chosen by an environment
variable when Triton is imported, so this file runs itself once more in a process of its own.
"""

import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gnws_d2.projects.acceleration import fused_group_norm, group_norm_relu, kernels

triton = pytest.importorskip("triton")
triton_kernels = pytest.importorskip("gnws_d2.projects.acceleration.kernels.triton_kernels")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if ON_GPU else "cpu"
ON_TRITON = INTERPRETED or ON_GPU
runs_triton = pytest.mark.skipif(not ON_TRITON, reason="test_through_the_interpreter runs it")
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="nothing runs on Triton")
only_from_outside = pytest.mark.skipif(ON_TRITON, reason="runs without it")

EPS = 1e-5
FORMATS = [torch.contiguous_format, torch.channels_last]
# Of a result of size 1: the rounding of the output, and for float32 that of some hundred sums.
# Triton has no kernels in float64.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-11}
TOLERANCE[torch.float32] = 4e-6 if ON_TRITON else 2e-5


def _repair_bounds_of_loops() -> None:
    """Triton 3.6's interpreter makes them numbers in a way that numpy 2.4 refuses:
    https://github.com/triton-lang/triton/issues/9171"""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if INTERPRETED:  # in a process of its own
    _repair_bounds_of_loops()


@pytest.mark.slow
@only_from_outside
def test_through_the_interpreter():
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.fixture(autouse=True, scope="module")
def every_size():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "MIN_ELEMENTS", 1)
        patch.delenv(kernels.VARIABLE, raising=False)
        yield


def formula(x, num_groups, weight, bias, eps, residual):
    """By its definition, whose gradients autograd finds."""
    groups = x.reshape(x.shape[0], num_groups, x.shape[1:].numel() // num_groups)
    centered = groups - groups.mean(2, keepdim=True)
    deviation = (centered.square().mean(2, keepdim=True) + eps).sqrt()
    per_channel = (-1,) + (1,) * (x.dim() - 2)
    y = (centered / deviation).view(x.shape) * weight.view(per_channel) + bias.view(per_channel)
    return (y if residual is None else y + residual).relu()


def inputs(shape, dtype=torch.float32, format=torch.contiguous_format, added=False, mean=0.0):
    """x, weight, bias, residual or None, and the gradient of y."""
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    x = (random(*shape) + mean).to(DEVICE, dtype)
    parameters = torch.float64 if dtype is torch.float64 else torch.float32
    weight, bias = random(2, shape[1]).to(DEVICE, parameters)
    residual = random(*shape).to(DEVICE, dtype) if added else None
    grad = random(*shape).to(DEVICE, dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=format)
    return x, weight, bias, residual, grad


def found(*arguments, num_groups, operation=group_norm_relu):
    """y and the gradients, of which there is one more with a residual."""
    *tensors, grad = (t if t is None else t.detach().requires_grad_() for t in arguments)
    x, weight, bias, residual = tensors
    y = operation(x, num_groups, weight, bias, EPS, residual)
    return y.detach(), torch.autograd.grad(y, [t for t in tensors if t is not None], grad)


def expected(*arguments, num_groups):
    wide = [t if t is None else t.double() for t in arguments]
    return found(*wide, num_groups=num_groups, operation=formula)


def assert_close(a, b, tolerance):
    """Within ``tolerance`` of the largest value of ``b``, and of 1."""
    assert a.shape == b.shape
    if b.numel():
        error = (a.double() - b).abs().max().item()
        assert error <= tolerance * max(1.0, b.abs().max().item()), error


def runs_on_triton(x):
    return kernels.kernels_for(x) is not kernels.torch_kernels


@st.composite
def shapes(draw):
    groups = draw(st.sampled_from([1, 2, 3, 8]))
    channels = groups * draw(st.integers(1, 5))
    areas = [(), (9,), (1, 1), (1, 7), (3, 5), (7, 7), (14, 14), (33, 41), (2, 3, 4)]
    return (draw(st.integers(0, 3)), channels, *draw(st.sampled_from(areas))), groups


@settings(max_examples=40, deadline=None, derandomize=True)
@example(((1, 3, 70, 70), 1), torch.float32, torch.contiguous_format, False)  # many splits
@example(((1, 4, 70, 70), 2), torch.float32, torch.channels_last, True)
@example(((1, 130, 3, 3), 2), torch.float32, torch.channels_last, True)  # many channels
@example(((2, 64, 1), 32), torch.float32, torch.contiguous_format, False)  # one value a group x 2
@given(shapes(), st.sampled_from(list(TOLERANCE)), st.sampled_from(FORMATS), st.booleans())
def test_results_are_those_of_the_formula(shape, dtype, format, added):
    shape, num_groups = shape
    arguments = inputs(shape, dtype, format, added)
    x, *others = arguments
    # Changes nothing. Statistics are those of float32, or results in half precision were worse.
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype.itemsize == 2):
        y, grads = found(*arguments, num_groups=num_groups)
    y64, grads64 = expected(*arguments, num_groups=num_groups)
    assert y.dtype == x.dtype and (y.stride() == x.stride() or not len(x))
    assert [g.dtype for g in grads] == [t.dtype for t in (x, *others[:-1]) if t is not None]
    assert grads[0].stride() == x.stride() or not len(x)
    assert_close(y, y64, TOLERANCE[dtype])
    for grad, grad64 in zip(grads, grads64, strict=True):
        assert_close(grad, grad64, 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_it_is_a_proper_operator(format, added):
    for dtype in (torch.float32, torch.float64)[: 1 if INTERPRETED else 2]:  # float64 is torch's
        x, *others, _ = inputs((2, 6, 3, 5), dtype, format, added)
        tensors = [t if t is None else t.requires_grad_() for t in (x, *others)]
        torch.library.opcheck(fused_group_norm._group_norm_relu, (*tensors, 3, EPS))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("added", [False, True])
def test_a_large_mean_costs_no_more_than_the_rounding_of_the_input(format, added):
    """At 1e4 with deviation 1, float32 has 5e-4 between numbers: half of that is lost with the
    mean, which is kept in float32. E[x^2] - E[x]^2 would leave nothing of the variance."""
    arguments = inputs((1, 8, 24, 50), torch.float32, format, added, mean=1e4)
    y, grads = found(*arguments, num_groups=4)
    y64, grads64 = expected(*arguments, num_groups=4)
    assert_close(y, y64, 1e-3)
    # Where ReLU turns is as uncertain as y: those few elements have another gradient.
    turned = (y64 > 0) != (y > 0)
    assert turned.float().mean() < 2e-3
    difference = (grads[0].double() - grads64[0]).abs()[~turned]
    assert difference.max() < 2e-3 * grads64[0].abs().max()


# The square of the last is infinite; only Triton's kernels take it.
@pytest.mark.parametrize("value", [0.0, -3.0, 1e4, pytest.param(1e20, marks=runs_triton)])
def test_a_constant_input_leaves_the_bias(value):
    x, weight, bias, _, grad = inputs((2, 6, 5, 7))
    y, grads = found(torch.full_like(x, value), weight, bias, None, grad, num_groups=3)
    # Torch's multiply the rounding of the value by the inverse deviation, 1 / sqrt(eps).
    rounding = torch.finfo(x.dtype).eps * abs(value) / EPS**0.5 * weight.abs().max()
    error = (y - bias.relu().view(1, 6, 1, 1)).abs().max()
    assert error <= (1e-6 if ON_TRITON else rounding)
    assert all(torch.isfinite(g).all() for g in grads)
    if ON_TRITON:
        assert grads[1].abs().max() == 0  # x less its mean is 0


@runs_triton
def test_nan_is_not_hidden_by_relu():
    x, weight, bias, _, grad = inputs((2, 4, 3, 3))
    x[1, 2, 0, 0] = torch.nan
    y, grads = found(x, weight, bias, None, grad, num_groups=2)
    assert y[1, 2:].isnan().all() and y[1, :2].isfinite().all() and y[0].isfinite().all()
    assert grads[0][1, 2:].isnan().all() and grads[1].isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize("format", FORMATS)
def test_a_second_run_gives_the_same_bits(request, format):
    """Deterministic algorithms fill new tensors with NaN: none is read before it is written."""
    torch.use_deterministic_algorithms(True)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    arguments = inputs((1, 8, 20, 60), format=format, added=True)
    (y, grads), (again, grads_again) = (found(*arguments, num_groups=4) for _ in range(2))
    assert y.isfinite().all() and torch.equal(y, again)
    assert all(g.isfinite().all() for g in grads) and all(map(torch.equal, grads, grads_again))
    x, weight, bias, residual, _ = arguments
    chosen = kernels.kernels_for(x)
    for summand in (None, residual):
        y, mean, rstd = chosen.forward(x, weight, bias, summand, 4, EPS)
        again = chosen.normalize(x, weight, bias, mean, rstd, EPS, summand)
        assert torch.equal(again, y)


def test_other_layouts_are_taken():
    """Of x, of the parameters, of the residual, of the gradient, and of the kept result."""
    x, weight, bias, residual, grad = inputs((2, 6, 9, 7), added=True)
    chosen = kernels.kernels_for(x)
    y, mean, rstd = chosen.forward(x, weight, bias, residual, 3, EPS)
    grads = chosen.backward(grad, x, weight, bias, y, mean, rstd, EPS)
    sliced = torch.stack([x, x], 4)[..., 0]
    strided = torch.stack([weight, bias], 1).unbind(1)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (residual, grad, y)]
    other = chosen.forward(sliced, *strided, last[0], 3, EPS)[0]
    assert not sliced.is_contiguous() and other.is_contiguous() and torch.equal(other, y)
    others = chosen.backward(last[1], sliced, *strided, last[2], mean, rstd, EPS)
    assert all(torch.equal(a, b) for a, b in zip(others, grads, strict=True))


@runs_triton
def test_what_the_kernels_do_not_take_goes_to_torch(monkeypatch):
    x = inputs((2, 6, 3, 3))[0]
    assert not runs_on_triton(x.double()) and not runs_on_triton(x[:0])
    assert not runs_on_triton(x[:1].expand(2**16, -1, -1, -1))  # CUDA's limit of a grid
    assert runs_on_triton(x)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "MIN_ELEMENTS", x.numel() + 1)
        assert not runs_on_triton(x)
    monkeypatch.setenv(kernels.VARIABLE, "torch")
    assert not runs_on_triton(x)


@only_from_outside
def test_where_triton_does_not_run_torch_does(monkeypatch, caplog):
    """As on a GPU that Triton does not support, or without a C compiler."""
    kernels._works.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not runs_on_triton(torch.randn(4, 6, 3, 3))
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "do not run on cpu" in line and "GNWS_D2_KERNELS=torch" in line
    kernels._works.cache_clear()


@runs_triton
def test_where_triton_computes_something_else_torch_does(monkeypatch, caplog):
    right = triton_kernels.forward
    monkeypatch.setattr(triton_kernels, "forward", lambda x, *args: right(x * 2 + 1, *args))
    kernels._works.cache_clear()
    assert not runs_on_triton(torch.randn(4, 6, 3, 3, device=DEVICE))
    assert "do not run" in caplog.text and "not close" in caplog.text
    kernels._works.cache_clear()


@not_interpreted
@settings(max_examples=300, deadline=None, derandomize=True)
@example(1, 32, 2, 3000, 3000, torch.channels_last)
@given(
    st.integers(1, 600),
    st.sampled_from([1, 2, 32]),
    st.sampled_from([1, 2, 3, 8, 64]),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.sampled_from(FORMATS),
)
def test_tiles_cover_every_element_once(n, groups, per_group, height, width, format):
    x = torch.empty(n, groups * per_group, height, width, device="meta")
    tiles = triton_kernels.Tiles(x.contiguous(memory_format=format), groups)
    starts = [split * tiles.chunk for split in range(tiles.splits)]
    assert starts[-1] < tiles.pixels <= starts[-1] + tiles.chunk
    assert tiles.chunk % tiles.block_p == 0
    assert tiles.block_c * tiles.block_p <= 2048
    assert tiles.splits * per_group <= max(4096, 2 * per_group)
    assert max(tiles.partial_grid[1:] + tiles.pointwise_grid[1:]) < 2**16  # CUDA's limit


# Tiles, and the numbers that are 1, which Triton compiles in as constants.
ONE_PIXEL = ["pixels", "chunk", "splits", "channels_per_group", "stride_c", "stride_p"]
CASES = {
    "contiguous": ((2, 1024), ["stride_p"]),
    "channels_last": ((64, 32), ["stride_c"]),
    "a pixel": ((64, 1), ONE_PIXEL),
    "a number": ((1, 1), [*ONE_PIXEL, "channels"]),
}


def compile_for_h100(kernel, types, constants):
    """Without a GPU: the interpreter takes more than the compiler does. Integers need no type."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fixed = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert binary.asm["cubin"]
    # No atomics: a second run would not give the same bits.
    assert not re.search(r"^\s*(@\S+ )?(atom|red)\.", binary.asm["ptx"], re.MULTILINE)


@pytest.mark.slow
@not_interpreted
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_compile_for_a_gpu(case, dtype, added):
    (block_c, block_p), ones = CASES[case]
    chosen = {"BLOCK_C": block_c, "BLOCK_P": block_p, "BLOCK": 256}
    chosen |= {"ADD": added, "ADDED": added, "MASKED": added} | dict.fromkeys(ones, 1)
    types = dict.fromkeys(["x", "y", "residual", "grad", "grad_residual", "grad_x"], f"*{dtype}")
    single = ["weight", "bias", "mean", "rstd", "partial", "of_group"]
    types |= dict.fromkeys(single, "*fp32") | {"eps": "fp32"}
    for name, kernel in vars(triton_kernels).items():
        # Two are parts of the others.
        if isinstance(kernel, triton.runtime.JITFunction) and name not in ("_affine", "_merge"):
            compile_for_h100(kernel, types, chosen)
