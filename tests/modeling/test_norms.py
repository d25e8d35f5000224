"""Batch-Channel Normalization as NORM of the models that Detectron2 builds."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from torch import nn

from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.checkpoint.structure import shapes_of
from gnws_d2.errors import ConfigError
from gnws_d2.layers import BatchChannelNorm2d
from gnws_d2.modeling.errors import build_errors
from gnws_d2.modeling.norms import BCN_NORMS, with_norm_layers

CONFIG = "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml"
SECTIONS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")


def all_set_to(norm: str) -> list[str]:
    return [word for section in SECTIONS for word in (f"MODEL.{section}.NORM", norm)]


def test_the_config_and_detectron2_stay_as_they_are_and_shapes_need_no_tensors(tiny_config):
    cfg = tiny_config(CONFIG)
    before = cfg.dump()
    model = build_model(cfg)
    assert cfg.dump() == before
    assert shapes_of(cfg) == {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert with_norm_layers(cfg).MODEL.FPN.NORM is BCN_NORMS["EstBCN"]
    with pytest.raises(KeyError):
        get_norm("EstBCN", 32)


@pytest.mark.parametrize("norm", ["BCN", "EstBCN"])
def test_frozen_stages_keep_their_statistics(tiny_config, norm):
    cfg = tiny_config(CONFIG, *all_set_to(norm), "MODEL.BACKBONE.FREEZE_AT", "2")
    bottom_up = build_model(cfg).backbone.bottom_up
    for stage in (bottom_up.stem, bottom_up.res2):
        norms = [m for m in stage.modules() if isinstance(m, BatchChannelNorm2d)]
        assert norms and all(isinstance(m.bn, FrozenBatchNorm2d) for m in norms)
        assert not any(p.requires_grad for p in stage.parameters())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in bottom_up.res3.modules())


@pytest.mark.parametrize("freeze", ["02", "20"])
def test_weights_of_frozen_and_trained_stages_interchange(tiny_config, tmp_path, freeze):
    """Only a layer that is trained has a moving speed; it is not of the weights."""
    configs = [tiny_config(CONFIG, "MODEL.BACKBONE.FREEZE_AT", stages) for stages in freeze]
    trained, other = map(build_model, configs)
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.normal_()
    DetectionCheckpointer(trained, str(tmp_path)).save("model")
    Checkpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
    theirs, own = trained.state_dict(), other.state_dict()
    names = {name for name in own if not name.endswith("moving_speed")}
    assert names == {name for name in theirs if not name.endswith("moving_speed")}
    assert all(torch.equal(theirs[name], own[name]) for name in names)


def test_the_weight_decay_of_norms_is_that_of_every_part_of_it(tiny_config):
    cfg = tiny_config(CONFIG, "SOLVER.WEIGHT_DECAY_NORM", "0.25")
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    norm = model.backbone.fpn_lateral3.norm
    assert {decays[p] for p in norm.parameters()} == {0.25}
    assert decays[model.backbone.fpn_lateral3.weight] == cfg.SOLVER.WEIGHT_DECAY


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("FPN.NORM", "EBCN", "does not know 'EBCN', the value of MODEL.FPN.NORM. Use BN, "),
        ("ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NORM, .*EstBCN, .* need "),
        ("RESNETS.DEPTH", "51", "does not know 51, the value of MODEL.RESNETS.DEPTH."),
        ("ROI_BOX_HEAD.CONV_DIM", "48", "48.* a multiple of 32 .* Compare the keys of MODEL"),
        ("ROI_HEADS.NAME", "Heads", "No object named 'Heads' found in 'ROI_HEADS' registry"),
    ],
)
def test_what_no_component_knows_is_refused_with_a_fix(tiny_config, key, value, said):
    cfg = tiny_config(CONFIG, f"MODEL.{key}", value)
    with pytest.raises(ConfigError, match=said), build_errors(cfg):
        build_model(cfg)


@pytest.mark.parametrize("depth", ["R_50", "R_101", "X_50_32x4d", "X_101_32x4d"])
@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/faster_rcnn_{}_FPN_{}_ws_1x.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_{}_FPN_{}_ws_2x.yaml",
    ],
)
def test_the_coco_configs_are_those_of_gn_ws_but_for_the_norm(name, depth):
    cfg, gn = (load_config(name.format(depth, norm)) for norm in ("bcn", "gn"))
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0 and cfg.MODEL.WEIGHTS == ""
    shapes_of(cfg)
    for section in SECTIONS:
        assert cfg.MODEL[section].NORM == "EstBCN"
        cfg.MODEL[section].NORM = "GN"
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.WEIGHTS = 2, gn.MODEL.WEIGHTS
    cfg.MODEL.BCN = gn.MODEL.BCN
    assert cfg == gn
