"""The registered backbones and heads: Detectron2's own, with standardized convolutions."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.projects.deeplab import DeepLabV3Head, DeepLabV3PlusHead, add_deeplab_config
from torch import nn

from gnws_d2 import StandardizationReport, modeling
from gnws_d2.errors import ConfigError
from gnws_d2.layers import BatchChannelNorm2d, WSConv2d, fold, standardize_weight
from gnws_d2.modeling.norms import norm_layer

ROI = ShapeSpec(channels=32, height=7, width=7)
STAGES = {"res2": ShapeSpec(channels=32, stride=4), "res5": ShapeSpec(channels=64, stride=16)}


def weights_standardized(plain: nn.Module, head: nn.Module) -> nn.Module:
    """``plain`` with the weights of ``head``, standardized beforehand."""
    plain.load_state_dict(head.state_dict())
    for name, module in head.named_modules():
        if isinstance(module, WSConv2d):
            plain.get_submodule(name).weight.data = standardize_weight(module.weight.data)
    return plain


@pytest.mark.parametrize("norm", ["GN", "EstBCN", "BCN"])
def test_the_head_of_deeplab_v3_plus_is_detectron2_s_with_standardized_weights(norm):
    """See test_every_norm.py for the other heads."""
    torch.manual_seed(0)
    sizes = dict(project_channels=[32], aspp_dilations=[1, 2, 3], aspp_dropout=0.0, num_classes=3)
    sizes |= dict(decoder_channels=[32, 32], common_stride=4, train_size=None)
    head = modeling.WSDeepLabV3PlusHead(STAGES, **sizes, norm=norm).eval()
    kinds = [type(m) for m in head.modules()]
    assert kinds.count(WSConv2d) == 8
    assert kinds.count(BatchChannelNorm2d) == (0 if norm == "GN" else 8)
    counterpart = DeepLabV3PlusHead(STAGES, **sizes, norm=norm_layer(norm)).eval()
    weights_standardized(counterpart, head)
    x = {n: torch.randn(2, s.channels, 64 // s.stride, 64 // s.stride) for n, s in STAGES.items()}
    with torch.no_grad():
        torch.testing.assert_close(head.layers(x), counterpart.layers(x), rtol=0, atol=0)
    assert type(fold(head)) is DeepLabV3PlusHead


def test_a_head_without_a_norm_is_refused():
    with pytest.raises(ConfigError, match="WSFastRCNNConvFCHead has no convolution with a norm"):
        modeling.WSFastRCNNConvFCHead(ROI, conv_dims=[32], fc_dims=[16], conv_norm="")


def test_the_head_of_deeplab_v3_reads_a_config():
    cfg = get_cfg()
    add_deeplab_config(cfg)
    head_cfg = cfg.MODEL.SEM_SEG_HEAD
    head_cfg.IN_FEATURES, head_cfg.ASPP_CHANNELS, head_cfg.CONVS_DIM = ["res5"], 32, 32
    head_cfg.NORM, head_cfg.NAME, head_cfg.NUM_CLASSES = "EstBCN", "WSDeepLabV3Head", 3
    head = modeling.WSDeepLabV3Head(cfg, {"res5": STAGES["res5"]})
    kinds = [type(m) for m in head.modules()]
    assert kinds.count(WSConv2d) == kinds.count(BatchChannelNorm2d) == 5
    assert type(fold(head)) is DeepLabV3Head


def small_resnet(name: str) -> CfgNode:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32, 64
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res3", "res4", "res5"], 32
    return cfg


@pytest.mark.parametrize(
    ("name", "count"),
    [("build_ws_resnet_backbone", 52), ("build_ws_resnet_deeplab_backbone", 52 + 2)],
)
def test_a_backbone_is_detectron2_s_with_standardized_weights(name, count):
    """All convolutions of this R-50, whose first block needs no shortcut; two more in DeepLab's
    stem. For those with a pyramid, see test_every_norm.py."""
    torch.manual_seed(0)
    cfg = small_resnet(name)
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    assert sum(isinstance(m, WSConv2d) for m in backbone.modules()) == count
    assert all(r.standardized == r.normalized for r in StandardizationReport.of(backbone).rows)
    cfg.MODEL.BACKBONE.NAME = name.replace("_ws", "")
    counterpart = weights_standardized(build_backbone(cfg, ShapeSpec(channels=3)).eval(), backbone)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), counterpart(x), rtol=0, atol=0)


def test_a_backbone_without_a_norm_is_refused_and_what_stays_plain_is_warned_of(caplog):
    cfg = small_resnet("build_ws_resnet_fpn_backbone")
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = ""
    with pytest.raises(ConfigError, match=r"MODEL\.RESNETS\.NORM is ''.*\"GN\""):
        build_backbone(cfg, ShapeSpec(channels=3))
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    build_backbone(cfg, ShapeSpec(channels=3))
    assert "MODEL.RESNETS.NORM is 'FrozenBN'" in caplog.text
    assert "MODEL.FPN.NORM is ''" in caplog.text
