"""The config keys reach any model; without them nothing changes."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from gradients import assert_same, gradients
from tiny import ELSEHOW

from gnws_d2.errors import ConfigError
from gnws_d2.projects.acceleration import accelerate, kernels
from gnws_d2.projects.acceleration.fuse import count_fused

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
CHECKPOINTING = ["MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", "['res4']"]


def test_defaults_and_configs_without_the_keys_change_nothing(tiny_config, accelerated_config):
    model = build_model(tiny_config(MASK_RCNN))

    def state():
        return [(type(m), sorted(vars(m)), len(m._forward_pre_hooks)) for m in model.modules()]

    before = state()
    for cfg in (get_cfg(), tiny_config(MASK_RCNN), accelerated_config(MASK_RCNN)):
        assert accelerate(model, cfg) is model
        assert state() == before


def test_keys_that_contradict_each_other_are_refused(accelerated):
    with pytest.raises(ConfigError, match=r"MODEL\.GN\.FUSE_RELU is 'on'.*\"always\""):
        accelerated(MASK_RCNN, "MODEL.GN.FUSE_RELU", "'on'")
    with pytest.raises(ConfigError, match=r'FUSE_RELU is "never".*to "auto"'):
        accelerated(MASK_RCNN, "MODEL.GN.RECOMPUTE_ACTIVATIONS", "True")


@pytest.mark.parametrize(
    ("choice", "recompute", "device", "triton", "fused"),
    [
        ("auto", "", "cpu", "auto", False),
        ("auto", "", "cuda", "auto", True),
        ("auto", "", "cuda", "torch", False),
        ("auto", "ACTIVATIONS", "cpu", "auto", True),
        ("auto", "CONVOLUTIONS", "cpu", "auto", True),
        ("always", "", "cpu", "torch", True),
        ("never", "", "cuda", "auto", False),
    ],
)
def test_the_config_and_the_machine_choose_what_is_fused(
    accelerated_config, monkeypatch, caplog, choice, recompute, device, triton, fused
):
    caplog.set_level("INFO")
    monkeypatch.setattr(kernels, "_works", lambda _: True)
    monkeypatch.setenv(kernels.VARIABLE, triton)
    opts = [f"MODEL.GN.RECOMPUTE_{recompute}", "True"] if recompute else []
    cfg = accelerated_config(MASK_RCNN, "MODEL.GN.FUSE_RELU", choice, *opts)
    model = build_model(cfg)
    cfg.MODEL.DEVICE = device  # the model does not move there
    cfg.MODEL.CHANNELS_LAST = True
    accelerate(model, cfg)
    assert (count_fused(model)[0] > 0) is fused
    # Even fused, 11 norms have no ReLU after them.
    unfused = 11 if fused else 32
    assert (f"what {unfused} of 32 norms" in caplog.text) is (device == "cuda")
    assert ("Fused 21 of 32 GroupNorms" in caplog.text) is fused
    assert ("forward" in model.backbone.__dict__) is bool(recompute)


@pytest.mark.parametrize("name", ["mask_rcnn_R_18_FPN_gn_ws", "mask_rcnn_R_18_FPN_gn"])
def test_a_model_computes_the_same(accelerated_config, caplog, name):
    caplog.set_level("INFO")
    cfg = accelerated_config(f"Digits/{name}.yaml", *ELSEHOW, *CHECKPOINTING)
    torch.manual_seed(0)
    plain = build_model(cfg).double()
    fast = accelerate(copy.deepcopy(plain), cfg)
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, found = (gradients(model.train().backbone, x) for model in (plain, fast))
    assert_same(found, expected, 1e-10)
    for words in ("Fused", "the residual blocks of res4", "as channels_last"):
        assert words in caplog.text
