"""Checkpointed stages give the gradients of ordinary ones, under the same names."""

import copy
from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from gnws_d2.errors import ConfigError
from gnws_d2.projects.acceleration import checkpoint_activations

KEY = "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING"


@pytest.fixture
def pair(tiny_config) -> tuple[nn.Module, nn.Module]:
    """The backbone of a model, and a copy of it with two stages checkpointed."""
    torch.manual_seed(0)
    plain = build_model(tiny_config()).backbone.train()
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving, ["res3", "res5"])
    return plain, saving


def forward_backward(backbone: nn.Module) -> Counter:
    """The number of forwards of each residual block in a training step."""
    count: Counter = Counter()
    for name, block in backbone.bottom_up.named_modules():
        if name.count(".") == 1 and name.startswith("res"):
            conv = block.conv1
            conv.register_forward_hook(lambda *_, name=name: count.update([name]))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    sum(level.square().mean() for level in backbone(image).values()).backward()
    return count


def test_gradients_are_the_same_bit_for_bit(pair):
    for backbone in pair:
        forward_backward(backbone)
    plain, saving = (dict(b.named_parameters()) for b in pair)
    assert all(torch.equal(plain[name].grad, saving[name].grad) for name in plain)


def test_the_chosen_stages_alone_are_computed_twice(pair):
    plain, saving = map(forward_backward, pair)
    assert set(plain.values()) == {1}
    assert saving == {name: 2 if name[:4] in ("res3", "res5") else 1 for name in plain}


def test_modules_and_state_keep_their_names(pair):
    plain, saving = pair
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in saving.named_modules()]
    saving.load_state_dict(plain.state_dict())


def test_a_copy_runs_its_own_blocks(pair):
    _, saving = pair
    copied = copy.deepcopy(saving)
    forward_backward(copied)
    assert copied.bottom_up.res3[0].conv1.weight.grad is not None
    assert saving.bottom_up.res3[0].conv1.weight.grad is None


def test_without_gradients_nothing_is_computed_twice(pair):
    _, saving = pair
    calls = []
    saving.bottom_up.res3[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        saving.eval()(torch.zeros(1, 3, 64, 64))
    assert len(calls) == 1


def test_the_config_key_reaches_the_model(accelerated):
    model = accelerated("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", KEY, "['res4']")
    calls = forward_backward(model.backbone)
    assert calls["res4.0"] == 2 and calls["res3.0"] == 1


def test_a_stage_that_does_not_exist_is_refused(tiny_config):
    model = build_model(tiny_config())
    with pytest.raises(ConfigError, match=rf"{KEY}.*'res6'.*res2, res3, res4, res5.*Remove"):
        checkpoint_activations(model, ["res6"])
    with pytest.raises(ConfigError, match=r"'res3'.*is a MaxIoURPN, no ResNet"):
        checkpoint_activations(model.proposal_generator, ["res3"])


def test_batch_statistics_are_refused_unless_frozen(accelerated):
    opts = ["Digits/mask_rcnn_R_18_FPN_bn.yaml", "MODEL.BACKBONE.FREEZE_AT", "2"]
    with pytest.raises(ConfigError, match=r"'res3', which has a BatchNorm2d.*Remove 'res3'"):
        accelerated(*opts, KEY, "['res2', 'res3']")
    accelerated(*opts, KEY, "['res2']")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which counts its memory")
def test_less_memory_is_taken(pair):
    peaks = []
    for backbone in pair:
        backbone.cuda()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        levels = backbone(torch.randn(2, 3, 512, 512, device="cuda"))
        sum(level.square().mean() for level in levels.values()).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0]
