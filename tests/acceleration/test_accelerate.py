"""The config keys reach any model; without them nothing changes."""

import copy
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from tiny import ELSEHOW
from torch import nn

import gnws_d2
from gnws_d2 import load_config
from gnws_d2.errors import ConfigError
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config, kernels
from gnws_d2.projects.acceleration.fuse import count_fused
from gnws_d2.projects.detection.train_net import Trainer

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
CHECKPOINTING = ["MODEL.BACKBONE.ACTIVATION_CHECKPOINTING", "['res4']"]


def leaves(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in cfg.items():
        inner = isinstance(value, CfgNode)
        found |= leaves(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def fingerprint(model: nn.Module) -> list[tuple[str, type, list[str]]]:
    """What an acceleration may change of a module."""
    return [
        (name, type(m), sorted(m.__dict__), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]


def test_keys_are_added_and_none_is_changed():
    before, after = get_cfg(), get_cfg()
    add_acceleration_config(after)
    assert leaves(before).items() <= leaves(after).items()
    assert set(leaves(after)) - set(leaves(before)) == {
        "MODEL.GN.FUSE_RELU",
        "MODEL.GN.RECOMPUTE_ACTIVATIONS",
        "MODEL.GN.RECOMPUTE_CONVOLUTIONS",
        "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING",
        "MODEL.CHANNELS_LAST",
        "MODEL.COMPILE.PARTS",
        "MODEL.COMPILE.BACKEND",
        "INPUT.SIZE_DIVISIBILITY",
    }


def test_the_older_names_of_keys_are_ignored_with_a_warning(tmp_path, caplog):
    old = tmp_path / "old.yaml"
    old.write_text("MODEL:\n  GN:\n    FUSE_RELU: always\n    REBUILD_ACTIVATIONS: True\n")
    cfg = load_config(old, (), [add_acceleration_config])
    assert cfg.MODEL.GN.FUSE_RELU == "always" and not cfg.MODEL.GN.RECOMPUTE_ACTIVATIONS
    assert "ignoring): MODEL.GN.REBUILD_ACTIVATIONS" in caplog.text


def test_defaults_and_configs_without_the_keys_change_nothing(tiny_config, accelerated_config):
    model = build_model(tiny_config(MASK_RCNN))
    before = fingerprint(model)
    for cfg in (get_cfg(), tiny_config(MASK_RCNN), accelerated_config(MASK_RCNN)):
        assert accelerate(model, cfg) is model
        assert fingerprint(model) == before


BAD = {
    "a choice of fusing that does not exist": (
        ["MODEL.GN.FUSE_RELU", "'on'"],
        ["MODEL.GN.FUSE_RELU is 'on'", '"always"'],
    ),
    "activations recomputed that are not fused": (
        ["MODEL.GN.RECOMPUTE_ACTIVATIONS", "True"],
        ["MODEL.GN.RECOMPUTE_ACTIVATIONS", "MODEL.GN.FUSE_RELU is 'never'", 'to "auto"'],
    ),
    "convolutions recomputed without the activations": (
        ["MODEL.GN.FUSE_RELU", "auto", "MODEL.GN.RECOMPUTE_CONVOLUTIONS", "True"],
        ["MODEL.GN.RECOMPUTE_CONVOLUTIONS", "Set MODEL.GN.RECOMPUTE_ACTIVATIONS to True"],
    ),
}


@pytest.mark.parametrize(("opts", "said"), BAD.values(), ids=BAD)
def test_keys_that_contradict_each_other_are_refused(accelerated, opts, said):
    with pytest.raises(ConfigError) as error:
        accelerated(MASK_RCNN, *opts)
    assert all(words in str(error.value) for words in said), error.value
    assert "\n" not in str(error.value)


CHOICES = [
    # FUSE_RELU, RECOMPUTE_ACTIVATIONS, device, kernels -> fused
    ("auto", False, "cpu", "auto", False),
    ("auto", False, "cuda", "auto", True),
    ("auto", False, "cuda", "torch", False),
    ("auto", True, "cpu", "auto", True),
    ("always", False, "cpu", "torch", True),
    ("never", False, "cuda", "auto", False),
]


@pytest.mark.parametrize(("choice", "recompute", "device", "triton", "fused"), CHOICES)
def test_the_config_and_the_machine_choose_what_is_fused(
    accelerated_config, monkeypatch, caplog, choice, recompute, device, triton, fused
):
    caplog.set_level("INFO")
    monkeypatch.setattr(kernels, "_works", lambda _: True)
    monkeypatch.setenv(kernels.VARIABLE, triton)
    opts = ["MODEL.GN.FUSE_RELU", choice, "MODEL.GN.RECOMPUTE_ACTIVATIONS", str(recompute)]
    cfg = accelerated_config(MASK_RCNN, *opts)
    model = build_model(cfg)
    cfg.MODEL.DEVICE = device  # the model does not move there
    accelerate(model, cfg)
    assert (count_fused(model)[0] > 0) is fused
    assert ("Fused 21 of 32 GroupNorms" in caplog.text) is fused
    assert ("forward" in model.backbone.__dict__) is recompute


@pytest.mark.parametrize(
    "name",
    [
        "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml",
        "Digits/mask_rcnn_R_18_FPN_gn.yaml",  # Detectron2's own model
        "Digits/retinanet_R_18_FPN_gn_ws.yaml",
    ],
)
def test_any_model_computes_the_same(accelerated_config, caplog, name):
    caplog.set_level("INFO")
    cfg = accelerated_config(name, *ELSEHOW, *CHECKPOINTING)
    torch.manual_seed(0)
    plain = build_model(cfg).double()
    fast = accelerate(copy.deepcopy(plain), cfg)
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for model in (plain, fast):
        levels = list(model.train().backbone(x).values())
        slopes = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape) for t in levels]
        torch.autograd.backward(levels, slopes)
        gradients.append({n: p.grad for n, p in model.backbone.named_parameters()})
    for parameter, expected in gradients[0].items():
        error = (gradients[1][parameter] - expected).abs().max()
        assert error <= 1e-10 * expected.abs().max(), parameter
    for words in ("Fused", "the residual blocks of res4", "as channels_last"):
        assert words in caplog.text


def record_dtypes(model: nn.Module) -> set[torch.dtype]:
    """A set that collects the types of what GroupNorms take."""
    seen: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    return seen


@pytest.mark.slow
def test_training_in_bfloat16(accelerated_config):
    """Through train_net.py's Trainer: near float32, with the norms in bfloat16."""
    losses = []
    for opts in ([], ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", *ELSEHOW]):
        cfg = accelerated_config(MASK_RCNN, *opts)
        cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 1, 0, ()
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        seen = record_dtypes(trainer.model)
        trainer.train()
        losses.append(trainer.storage.history("total_loss").latest())
    assert count_fused(trainer.model)[0] > 0 and seen == {torch.bfloat16}
    assert losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_package_imports_no_project():
    files = list(Path(gnws_d2.__file__).parent.rglob("*.py"))
    imports = re.compile(r"^\s*(from|import) +(gnws_d2|\.+)\.?projects", re.MULTILINE)
    assert len(files) > 20
    assert [file for file in files if imports.search(file.read_text(encoding="utf-8"))] == []
