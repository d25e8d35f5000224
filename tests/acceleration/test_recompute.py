"""What is recomputed in backward gives the same gradients bit for bit, and takes less memory."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from gradients import assert_same, gradients
from measure import allocated
from torch import nn

from gnws_d2.layers import WSConv2d
from gnws_d2.projects.acceleration import fuse_norm_relu
from gnws_d2.projects.acceleration.recompute import recomputing

X = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(1))
# Arguments of fuse_norm_relu after the model.
NOTHING, ACTIVATIONS, CONVOLUTIONS = (), (True,), (False, True)


@pytest.fixture
def chain():
    """Convolution, GroupNorm + ReLU, convolution, as in a residual block."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 2, 3))
    return fuse_norm_relu(nn.Sequential(made), recompute_activations=True)[0]


def test_an_activation_edited_before_it_is_kept_is_kept(chain):
    first, norm, _, second = chain

    def edited(x):
        return second(norm(first(x)).mul_(2))

    grads = []
    for forward in (edited, recomputing(edited)):
        chain.zero_grad()
        forward(X).sum().backward()
        grads.append(second.weight.grad.clone())
    assert torch.equal(*grads)


@pytest.mark.parametrize("part", [1, 3])
def test_an_edit_after_it_was_kept_is_an_error_as_without(chain, part):
    y = chain(X)
    with torch.no_grad():
        chain[part].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()


def test_nothing_holds_the_graph_after_backward(chain):
    seen = []
    chain[0].register_forward_hook(lambda *a: seen.append(weakref.ref(a[2])))
    gc.disable()
    try:
        chain(X).sum().backward()
        chain(X)
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()


def blocks(norm="GN", standardized=True):
    torch.manual_seed(0)
    made = nn.Sequential(
        BottleneckBlock(64, 128, bottleneck_channels=32, norm=norm),
        BottleneckBlock(128, 128, bottleneck_channels=32, norm=norm),
    )
    for module in made.modules():
        if standardized and isinstance(module, nn.Conv2d):
            module.__class__ = WSConv2d
    return made


def kept_by(model):
    """Bytes that a forward leaves for backward, beside the input."""
    x = torch.randn(1, 64, 64, 64)
    model(x)
    with allocated("cpu") as meter:
        y = model(x)
    assert y.requires_grad
    return meter.now


@pytest.mark.parametrize("standardized", [False, True])
def test_a_block_keeps_no_more_than_with_frozen_batch_norm(standardized):
    plain, frozen = blocks(standardized=standardized), blocks("FrozenBN", False)
    shortcut = 0 if standardized else 128 * 64 * 64 * 4  # not recomputed without WS
    kept = [kept_by(fuse_norm_relu(copy.deepcopy(plain), *r)) for r in (ACTIVATIONS, CONVOLUTIONS)]
    assert kept[1] - shortcut == pytest.approx(kept_by(frozen), rel=0.01)  # but for statistics
    assert kept[0] > 1.25 * kept[1]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_copied_blocks_are_the_same_bit_for_bit(autocast, frozen):
    plain = blocks()
    plain[0].conv3.weight.requires_grad_(not frozen)
    x = torch.randn(2, 64, 8, 9, generator=torch.Generator().manual_seed(1))
    expected = gradients(fuse_norm_relu(copy.deepcopy(plain)), x, autocast)
    for recompute in (ACTIVATIONS, CONVOLUTIONS):
        model = fuse_norm_relu(copy.deepcopy(plain), *recompute)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same(gradients(copied, x, autocast), expected)


@pytest.mark.parametrize("recompute", [NOTHING, ACTIVATIONS, CONVOLUTIONS])
def test_blocks_are_compiled_without_a_break(recompute):
    plain = blocks(standardized=False).double()
    x = torch.randn(2, 64, 8, 9, dtype=torch.float64)
    fused = fuse_norm_relu(copy.deepcopy(plain), *recompute)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    expected = gradients(plain, x)  # by other names
    assert_same(dict(zip(expected, gradients(compiled, x).values(), strict=True)), expected, 1e-12)
