"""Detectron2's own modules with GroupNorm + ReLU fused compute what they did before."""

import copy

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from gradients import assert_same, gradients

from gnws_d2.data import Mapper
from gnws_d2.layers import StandardizedConv, fold
from gnws_d2.projects.acceleration import GroupNormReLU, checkpoint_activations, fuse_norm_relu
from gnws_d2.projects.acceleration.fuse import count_fused

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
# Arguments of fuse_norm_relu after the model: what is recomputed in backward.
NOTHING, ACTIVATIONS, CONVOLUTIONS = (), (True,), (False, True)
X = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pair(cfg, recompute=NOTHING):
    torch.manual_seed(0)
    plain = build_model(cfg).double()
    return plain, fuse_norm_relu(copy.deepcopy(plain), *recompute)


# Of each config: fused norms, and all norms. The others have no ReLU (shortcuts, FPN), or are in
# blocks of another class (the deformable ones).
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recompute", "fused", "norms"),
    [
        ("mask_rcnn_R_18_FPN_gn_ws", NOTHING, 1 + 16 + 2 + 2, 1 + 16 + 3 + 8 + 2 + 2),
        ("mask_rcnn_R_18_FPN_gn_ws", CONVOLUTIONS, 1 + 16 + 2 + 2, 1 + 16 + 3 + 8 + 2 + 2),
        ("retinanet_R_18_FPN_gn_ws", ACTIVATIONS, 1 + 16 + 4, 1 + 16 + 3 + 6 + 4),
        ("panoptic_fpn_R_18_gn_ws", ACTIVATIONS, 1 + 16 + 2 + 2 + 7, 1 + 16 + 3 + 8 + 2 + 2 + 7),
        ("mask_rcnn_R_50_FPN_deform_gn_ws", CONVOLUTIONS, 1 + 9 + 12 + 4, 1 + 48 + 3 + 8 + 4),
    ],
)
def test_losses_and_gradients_of_a_detector_stay_the_same(
    tiny_config, double, name, recompute, fused, norms
):
    cfg = tiny_config(f"Digits/{name}.yaml")
    batch = list(map(Mapper(cfg, is_train=True), DatasetCatalog.get("digits_panoptic_train")[:2]))
    models, found = pair(cfg, recompute), []
    for model in models:
        torch.manual_seed(3)
        with EventStorage():
            losses = model.train()(batch)
        sum(losses.values()).backward()
        found += [losses, {name: p.grad for name, p in model.named_parameters()}]
    # RetinaNet's coarsest levels have no object here.
    assert all(g.any() for n, g in found[1].items() if "top_block" not in n)
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-9, atol=1e-12)
    assert count_fused(models[1]) == (fused, norms)
    before = [type(m) for m in models[1].modules()]
    assert [type(m) for m in fuse_norm_relu(models[1]).modules()] == before


@torch.no_grad()
def features(model):
    return model.eval().backbone(X)


@pytest.mark.parametrize("recompute", [NOTHING, ACTIVATIONS, CONVOLUTIONS])
def test_a_folded_copy_computes_the_same(tiny_config, recompute):
    plain, fused = pair(tiny_config(MASK_RCNN), recompute)
    checkpoint_activations(fused, ["res3"])
    folded = fold(fused)
    assert not any(isinstance(m, StandardizedConv) for m in folded.modules())
    assert_same(features(folded), features(fused), 0)
    assert_same(features(folded), features(plain), 1e-12)
    with torch.no_grad():
        fused.backbone.bottom_up.stem.conv1.weight.zero_()
    assert_same(features(folded), features(plain), 1e-12)  # the copy has its own weights


def test_frozen_and_checkpointed_stages_of_a_model_that_recomputes(tiny_config):
    """Checkpointed before it is fused; accelerate() fuses first."""
    torch.manual_seed(0)
    plain = build_model(tiny_config(MASK_RCNN, "MODEL.BACKBONE.FREEZE_AT", "2")).double()
    fused = copy.deepcopy(plain)
    checkpoint_activations(fused, ["res3", "res4"])
    fuse_norm_relu(fused, *CONVOLUTIONS)
    expected = gradients(plain.backbone, X)
    assert "bottom_up.res2.0.conv1.weight" not in expected
    assert_same(gradients(fused.backbone, X), expected, 1e-12)


@pytest.mark.parametrize("name", ["bcn_ws", "bn"])
def test_other_norms_are_left_alone(tiny_config, name):
    cfg = tiny_config(f"Digits/mask_rcnn_R_18_FPN_{name}.yaml", "MODEL.BCN.MOVING_SPEED", "0.1")
    fused = fuse_norm_relu(build_model(cfg), recompute_activations=True)
    assert not any(isinstance(m, GroupNormReLU) for m in fused.backbone.modules())
