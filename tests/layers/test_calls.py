"""What Weight Standardization adds to a training step: calls of operators, and layouts."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from gnws_d2.layers import WSConv1d, WSConv2d, WSConv3d, standardize_weight, unchanged_weights

KINDS = [
    (WSConv1d, (4, 6, 3), {}, (2, 4, 9)),
    (WSConv2d, (4, 6, 3), {"padding": 1, "bias": False}, (2, 4, 6, 5)),
    (WSConv2d, (4, 6, 1), {}, (2, 4, 6, 5)),
    (WSConv2d, (4, 6, 3), {"groups": 2, "stride": 2}, (2, 4, 7, 7)),
    (WSConv3d, (2, 3, 2), {}, (1, 2, 4, 4, 4)),
]


class Calls(TorchDispatchMode):
    """The operators that compute something, and how often: no views, no allocation."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        if not is_view and function is not torch.ops.aten.detach.default:
            self.seen[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    @property
    def count(self):
        return self.seen.total()


def steps(conv, x, number):
    """The calls of each forward and backward whose gradients accumulate."""
    found = []
    with unchanged_weights():
        for _ in range(number):
            with Calls() as forward:
                out = conv(x)
            grad = torch.randn_like(out)
            with Calls() as backward:
                out.backward(grad)
            found.append((forward.count, backward.count))
    return found


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kind", "arguments", "options", "size"), KINDS)
def test_five_calls_a_step_and_three_in_further_micro_batches(kind, arguments, options, size, last):
    ws, x = kind(*arguments, **options), torch.randn(size, requires_grad=True)
    plain = kind.__mro__[2](*arguments, **options)
    if last and x.dim() == 4:
        ws, plain = (conv.to(memory_format=torch.channels_last) for conv in (ws, plain))
        x = x.detach().to(memory_format=torch.channels_last, copy=True).requires_grad_()
    optimizer = torch.optim.SGD(ws.parameters(), lr=0.1)
    for conv in (ws, plain):
        conv(x).sum().backward()  # what is made once
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        plain.zero_grad()
        added = [
            (forward - plain_forward, backward - plain_backward)
            for (forward, backward), (plain_forward, plain_backward) in zip(
                steps(ws, x, 3), steps(plain, x, 3), strict=True
            )
        ]
        assert added == [(3, 2), (1, 2), (1, 2)]


def test_five_calls_where_the_standardized_weight_is_needed_itself():
    conv = WSConv2d(4, 6, 3)
    conv.standardized_weight().sum().backward()
    with Calls() as calls:
        out = conv.standardized_weight()
    grad = torch.ones_like(out)
    with calls:
        torch.autograd.grad(out, conv.weight, grad)
    assert calls.count <= 5, calls.seen


def test_accumulated_gradients_are_those_of_weights_standardized_anew():
    torch.manual_seed(0)
    conv, other = (WSConv2d(4, 6, 3, groups=2) for _ in range(2))
    other.load_state_dict(conv.state_dict())
    for _ in range(3):
        with unchanged_weights():
            for step in range(3):
                x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(step))
                conv(x).square().sum().backward()
                other.train()  # keeps nothing
                other(x).square().sum().backward()
                assert torch.equal(conv.weight.grad, other.weight.grad)
        with torch.no_grad():
            for module in (conv, other):
                module.weight -= 0.1 * module.weight.grad
                module.weight.grad = None


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_fused_step_is_seen_by_every_loop(kind, set_to_none):
    """Torch's fused kernels leave the weight's version as it was."""
    conv, x = WSConv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    optimizer = kind(conv.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        loss = conv(x).square().sum()  # before the gradients of the last step are gone
        optimizer.zero_grad(set_to_none)
        loss.backward()
        optimizer.step()
        anew = WSConv2d(4, 6, 3)
        anew.load_state_dict(conv.state_dict())
        assert torch.equal(conv(x), anew(x))
        with torch.no_grad():
            assert torch.equal(conv(x), anew(x))


@pytest.mark.parametrize("kernel_size", [1, 3, (1, 3)])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_strides_of_the_weight(kernel_size, channels, groups, memory_format):
    if (kernel_size, channels, groups) == (1, 2, 2):
        return  # a fan-in of 1
    conv = WSConv2d(channels, 6, kernel_size, groups=groups).to(memory_format=memory_format)
    x = torch.randn(2, channels, 5, 5).to(memory_format=memory_format)
    for weight in (conv.weight, conv.standardized_weight()):
        assert weight.stride() == conv.weight.stride()
    conv(x).sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()
    [grad] = torch.autograd.grad(conv.standardized_weight().pow(3).sum(), conv.weight)
    assert grad.stride() == conv.weight.stride()


@pytest.mark.filterwarnings("error:Grad strides do not match")
def test_processes_copy_no_gradient(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        made = nn.Sequential(WSConv2d(4, 8, 1), WSConv2d(8, 4, 3)).to(
            memory_format=torch.channels_last
        )
        model = DistributedDataParallel(made)
        model(torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)).sum().backward()
        assert made[0].weight.grad.stride() == made[0].weight.stride()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("kind", "arguments", "options", "size"), KINDS)
def test_shapes_on_the_meta_device_with_gradients(kind, arguments, options, size):
    conv = kind(*arguments, **options, device="meta")
    out = conv(torch.empty(size, device="meta"))
    out.sum().backward()
    assert out.is_meta and conv.weight.grad.shape == conv.weight.shape
    assert standardize_weight(conv.weight).shape == conv.weight.shape


@pytest.mark.parametrize("shift", [0, 1, 1e3])
@pytest.mark.parametrize("scale", [1e-6, 0.02])
def test_no_digits_are_lost_to_a_mean_far_from_0(shift, scale):
    """But for those that the mean itself, rounded, does not have. In units of the deviation."""
    torch.manual_seed(0)
    conv = WSConv2d(64, 32, 3, bias=False)
    with torch.no_grad():
        conv.weight.normal_().add_(shift).mul_(scale)
        exact = conv.weight.double().requires_grad_()
    assert exact.is_leaf
    x = torch.randn(1, 64, 3, 3)
    flat = exact.flatten(1)
    std, mean = torch.std_mean(flat, 1, keepdim=True)
    expected = ((flat - mean) / (std + 1e-5)) @ x.flatten().double()
    out = conv(x).flatten()
    grad = torch.randn(32)
    out.backward(grad)
    expected.backward(grad.double())
    tolerance = 4e-7 * (1 + shift)
    for a, b in ((out, expected), (conv.weight.grad, exact.grad)):
        assert (a - b).norm() < tolerance * b.norm()
