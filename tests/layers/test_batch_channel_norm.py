"""The layers against float64 formulas written here step by step, and their edge cases."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import START_METHOD
from torch._dynamo.testing import CompileCounterWithBackend

from gnws_d2.layers import BatchChannelNorm2d, EstimatedBatchNorm2d

EPS = 1e-5
KINDS = {
    "batch": dict(),
    "batch, sync": dict(sync=True),
    "estimate": dict(estimate=True),
    "estimate, sync": dict(estimate=True, sync=True),
}


class Reference:
    """Both normalizations of the reference, of (N, C, H, W), in NumPy."""

    def __init__(self, layer: BatchChannelNorm2d, estimate: bool) -> None:
        values = {k: v.double().numpy().copy() for k, v in layer.state_dict().items()}
        self.group_weight, self.group_bias = values["weight"], values["bias"]  # (1, groups, 1)
        self.weight, self.bias = values["bn.weight"], values["bn.bias"]
        self.mean, self.var = values["bn.running_mean"], values["bn.running_var"]
        self.estimate = estimate

    def __call__(self, x: np.ndarray, speed: float | None) -> np.ndarray:
        """A step in training, or in evaluation if ``speed`` is None."""
        columns = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
        mean, var = (self.mean, self.var) if speed is None else self._step(columns, speed)
        scale, shift = self.weight / np.sqrt(var + EPS), self.bias
        out = (x - mean[:, None, None]) * scale[:, None, None] + shift[:, None, None]
        groups = out.reshape(len(x), self.group_weight.size, -1)
        centered = groups - groups.mean(2, keepdims=True)
        std = np.sqrt((centered**2).mean(2, keepdims=True) + EPS)
        return (self.group_weight * centered / std + self.group_bias).reshape(x.shape)

    def _step(self, values: np.ndarray, speed: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance to normalize the columns by; those of the layer are updated."""
        n, mean = len(values), values.mean(0)
        var = ((values - mean) ** 2).mean(0)
        if self.estimate:
            around_old = ((values - self.mean) ** 2).mean(0)
            self.mean = (1 - speed) * self.mean + speed * mean
            self.var = (1 - speed) * self.var + speed * around_old
            return self.mean, self.var
        self.mean = 0.9 * self.mean + 0.1 * mean
        self.var = 0.9 * self.var + 0.1 * var * n / (n - 1)
        return mean, var


def make(kind: str = "estimate", channels: int = 8, groups: int = 4) -> BatchChannelNorm2d:
    """A layer in training whose parameters are not those of the start, with a moving speed."""
    generator = torch.Generator().manual_seed(0)
    layer = BatchChannelNorm2d(channels, groups, **KINDS[kind])
    for parameter in layer.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) / 4
    if isinstance(layer.bn, EstimatedBatchNorm2d):
        layer.bn.moving_speed = 0.1
    return layer


def images(step: int, *size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    scale = torch.arange(1, size[1] + 1, dtype=dtype).view(1, -1, 1, 1)
    return torch.randn(size, generator=generator, dtype=dtype) * scale + scale.flip(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("kind", KINDS)
def test_many_steps_and_then_evaluation(kind, dtype, tolerance):
    layer = make(kind).to(dtype)
    reference = Reference(layer, "estimate" in kind)
    for step in range(60):
        speed = 0.2 * 0.97**step
        if isinstance(layer.bn, EstimatedBatchNorm2d):
            layer.bn.moving_speed = speed
            speed = layer.bn.moving_speed  # as its float32 or float64 holds it
        x = images(step, 1 + step % 3, 8, 3 + step % 4, 5, dtype=dtype)
        expected = reference(x.double().numpy(), speed)
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, tolerance, tolerance)
    np.testing.assert_allclose(layer.bn.running_mean, reference.mean, tolerance, tolerance)
    np.testing.assert_allclose(layer.bn.running_var, reference.var, tolerance, tolerance)
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x = images(99, 2, 8, 6, 5, dtype=dtype)
    expected = reference(x.double().numpy(), None)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, tolerance, tolerance)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("estimate", [False, True])
def test_names_shapes_and_initial_values_are_the_reference_s(estimate):
    expected = {"weight": (1, 32, 1), "bias": (1, 32, 1), "bn.weight": (64,), "bn.bias": (64,)}
    expected |= {"bn.running_mean": (64,), "bn.running_var": (64,), "bn.num_batches_tracked": ()}
    expected |= {"bn.estbn_moving_speed": (1,)} if estimate else {}
    state = BatchChannelNorm2d(64, estimate=estimate).state_dict()
    assert [(name, value.shape) for name, value in state.items()] == list(expected.items())
    for name, value in state.items():
        assert (value == name.endswith(("weight", "var"))).all(), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["batch", "estimate"])
def test_gradients_by_finite_differences(kind, training):
    layer = make(kind, channels=4, groups=2).double()
    layer(images(0, 2, 4, 3, 3))
    layer.train(training)
    if training and kind == "estimate":
        # The estimates of a step, held: they are constants to the gradient.
        layer.bn.estbn_moving_speed.zero_()
    x = images(1, 2, 4, 3, 2).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x, *values):
        state = dict(zip(names, values, strict=True))
        buffers = {k: v.clone() for k, v in layer.named_buffers()}
        return torch.func.functional_call(layer, (state, buffers), (x,))

    assert torch.autograd.gradcheck(function, (x, *values))


def test_the_gradient_of_a_step_is_that_of_its_new_estimates():
    layer, x = make().double(), images(0, 2, 8, 4, 4)
    [trained], [evaluated] = steps(layer, [x]), steps(layer.eval(), [x])
    torch.testing.assert_close(trained, evaluated, rtol=1e-12, atol=1e-12)
    # As in a head that all levels share: the estimates move in between.
    x.requires_grad_()
    (layer.train()(x) * layer(x[:1])).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_the_statistics_in_float32(kind, dtype):
    half, single = make(kind), make(kind)
    for step in range(5):
        # Far from 0: sums in half precision would be off by more than the spread.
        x = (images(step, 2, 8, 16, 16, dtype=torch.float32) + 100).to(dtype)
        out = half(x)
        assert out.dtype == dtype and out.isfinite().all()
        single(x.float())
    for name in ("running_mean", "running_var"):
        assert getattr(half.bn, name).dtype == torch.float32
        torch.testing.assert_close(getattr(half.bn, name), getattr(single.bn, name))
    out.float().square().sum().backward()
    grads = [parameter.grad for parameter in half.parameters()]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_changes_no_statistics(kind, training):
    layer = make(kind).train(training)
    x = torch.zeros(0, 8, 5, 5, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert all((p.grad == 0).all() for p in layer.parameters())
    assert (layer.bn.running_mean == 0).all() and (layer.bn.running_var == 1).all()


def test_one_value_a_group_becomes_the_bias():
    layer = make("estimate", channels=4, groups=4)
    out = layer.double()(images(0, 1, 4, 1, 1))
    torch.testing.assert_close(out, layer.bias.view(1, 4, 1, 1), rtol=1e-9, atol=1e-9)


def test_training_without_a_moving_speed_is_refused_with_a_fix():
    layer = BatchChannelNorm2d(32, estimate=True)
    x = torch.randn(1, 32, 4, 4)
    layer.eval()(x)
    with pytest.raises(RuntimeError, match=r"moving_speed.*unset.*MODEL\.BCN\.MOVING_SPEED"):
        layer.train()(x)
    layer.bn.moving_speed = 0.5
    layer(x)
    layer.bn.moving_speed = 0
    with pytest.raises(RuntimeError, match="moving_speed"):
        layer(x)


def test_values_that_cannot_work_are_refused():
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"moving_speed is {value}.*at most 1"):
            EstimatedBatchNorm2d(4).moving_speed = value
    with pytest.raises(ValueError, match=r"32 groups.*num_channels is 48.*multiple of 32"):
        BatchChannelNorm2d(48)


def test_the_moving_speed_is_saved_loaded_and_copied():
    layer = make()
    loaded = BatchChannelNorm2d(8, 4, estimate=True)
    loaded.load_state_dict(layer.state_dict())
    x = images(0, 2, 8, 4, 4, dtype=torch.float32)
    copied, expected = copy.deepcopy(layer), layer(x)
    for other in (loaded, copied):
        assert other.bn.moving_speed == layer.bn.moving_speed
        assert torch.equal(other(x), expected)
        assert torch.equal(other.bn.running_var, layer.bn.running_var)
    copied.bn.moving_speed = 0.7
    assert layer.bn.moving_speed == pytest.approx(0.1)
    loaded.load_state_dict(BatchChannelNorm2d(8, 4, estimate=True).state_dict())
    with pytest.raises(RuntimeError, match="unset"):
        loaded(x)


def test_a_schedule_does_not_compile_a_training_layer_again():
    layer, plain = make(), make()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for step in range(12):
        layer.bn.moving_speed = plain.bn.moving_speed = 0.5 / (step + 1)
        x = images(step, 2, 8, 4, 4, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(layer.bn.running_var, plain.bn.running_var)
    assert counter.frame_count == 1


def shards(step: int) -> list[torch.Tensor]:
    """What each of two processes has: images of two sizes, of unequal number, or none."""
    x = images(step, 4, 8, 4, 6)
    return [[x[:2], x[2:]], [x[:1], x[1:]], [x, x[:0]], [x[:0], x[:0]]][step % 4]


def steps(layer: BatchChannelNorm2d, batches: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Of each step, the output and the gradients at the images and the parameters."""
    seen = []
    for batch in batches:
        x = batch.clone().requires_grad_()
        layer.zero_grad()
        out = layer(x)
        (out**3 + out).sum().backward()
        seen.append([out.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())])
    return seen


def run_process(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    layer = make(kind).double()
    seen = steps(layer, [shards(step)[rank] for step in range(8)])
    torch.save((seen, layer.state_dict()), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch, sync", "estimate, sync"])
def test_two_processes_are_one_with_both_their_batches(tmp_path, kind):
    mp.start_processes(run_process, (str(tmp_path), kind), nprocs=2, start_method=START_METHOD)
    (first, state), (second, other) = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    layer = make(kind.split(",")[0]).double()
    expected = steps(layer, [torch.cat(shards(step)) for step in range(8)])
    for one, two, whole in zip(first, second, expected, strict=True):
        found = [torch.cat(pair) for pair in zip(one[:2], two[:2], strict=True)]
        found += [a + b for a, b in zip(one[2:], two[2:], strict=True)]  # sums over the images
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-12)
        assert torch.equal(state[name], other[name])
