"""Checkpointed stages give the gradients of ordinary ones, under the same names."""

import copy
from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model
from gradients import assert_same, gradients

from gnws_d2.errors import ConfigError
from gnws_d2.projects.acceleration import checkpoint_activations

KEY = "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING"


def test_the_chosen_stages_are_computed_twice_and_gradients_are_the_same_bit_for_bit(tiny_config):
    """In a copy, too, which runs its own blocks."""
    torch.manual_seed(0)
    plain = build_model(tiny_config()).backbone.train()
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving, ["res3", "res5"])
    counts, grads = [], []
    for backbone in (plain, copy.deepcopy(saving)):
        count = Counter()
        for name, block in backbone.bottom_up.named_modules():
            if name.count(".") == 1 and name.startswith("res"):
                block.conv1.register_forward_hook(lambda *_, n=name, c=count: c.update([n]))
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        grads.append(gradients(backbone, x))
        counts.append(count)
    assert set(counts[0].values()) == {1}
    assert counts[1] == {name: 2 if name[:4] in ("res3", "res5") else 1 for name in counts[0]}
    assert_same(*grads)
    assert all(p.grad is None for p in saving.parameters())


def test_a_stage_that_does_not_exist_is_refused(tiny_config):
    model = build_model(tiny_config())
    with pytest.raises(ConfigError, match=rf"{KEY} names 'res6'.*'res2', 'res3'.*Remove 'res6'"):
        checkpoint_activations(model, ["res6"])
    with pytest.raises(ConfigError, match=r"'res3'.*a MaxIoURPN, are \[\]"):
        checkpoint_activations(model.proposal_generator, ["res3"])


def test_batch_statistics_are_refused_unless_frozen(accelerated):
    opts = ["Digits/mask_rcnn_R_18_FPN_bn.yaml", "MODEL.BACKBONE.FREEZE_AT", "2"]
    with pytest.raises(ConfigError, match=r"'res3', which has a BatchNorm2d.*Remove 'res3'"):
        accelerated(*opts, KEY, "['res2', 'res3']")
    accelerated(*opts, KEY, "['res2']")
