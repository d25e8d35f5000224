"""Detectron2's own modules with GroupNorm + ReLU fused compute what they did before."""

import copy

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from gradients import assert_same, gradients
from torch import nn

from gnws_d2.data import Mapper
from gnws_d2.layers import StandardizedConv, fold
from gnws_d2.projects.acceleration import GroupNormReLU, checkpoint_activations, fuse_norm_relu
from gnws_d2.projects.acceleration.fuse import count_fused

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
# Of each config: fused norms, and all norms. The others have no ReLU (shortcuts, FPN), or are in
# blocks of another class (the deformable ones).
FAMILIES = {
    "mask_rcnn_R_18_FPN_gn_ws": (1 + 16 + 2 + 2, 1 + 16 + 3 + 8 + 2 + 2),
    "retinanet_R_18_FPN_gn_ws": (1 + 16 + 4, 1 + 16 + 3 + 6 + 4),
    "panoptic_fpn_R_18_gn_ws": (1 + 16 + 2 + 2 + 7, 1 + 16 + 3 + 8 + 2 + 2 + 7),
    "mask_rcnn_R_50_FPN_deform_gn_ws": (1 + 9 + 12 + 2 + 2, 1 + 48 + 3 + 8 + 2 + 2),
}
# Arguments of fuse_norm_relu after the model: what is recomputed in backward.
NOTHING, ACTIVATIONS, CONVOLUTIONS = (), (True,), (False, True)
X = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
RECOMPUTED = pytest.mark.parametrize("recompute", [NOTHING, ACTIVATIONS, CONVOLUTIONS])


def pair(cfg, recompute=NOTHING):
    torch.manual_seed(0)
    plain = build_model(cfg).double()
    return plain, fuse_norm_relu(copy.deepcopy(plain), *recompute)


def step(model, batch):
    """Losses and gradients."""
    torch.manual_seed(3)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()}, grads


@pytest.mark.slow
@RECOMPUTED
def test_losses_and_gradients_of_a_detector_stay_the_same(tiny_config, double, recompute):
    cfg = tiny_config(MASK_RCNN)
    batch = list(map(Mapper(cfg, is_train=True), DatasetCatalog.get("tiny_digits_train")[:2]))
    (losses, grads), (fused_losses, fused_grads) = (
        step(model.train(), batch) for model in pair(cfg, recompute)
    )
    assert all(g is not None and g.abs().max() > 0 for g in grads.values())
    assert_same(fused_losses, losses, 1e-12)
    assert_same(fused_grads, grads, 1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_fused(tiny_config, name):
    model = build_model(tiny_config(f"Digits/{name}.yaml"))
    assert count_fused(fuse_norm_relu(model)) == FAMILIES[name]


def test_a_head_of_a_sequence_stays_the_same(tiny_config):
    plain, fused = pair(tiny_config("Digits/retinanet_R_18_FPN_gn_ws.yaml"))
    levels = [torch.randn(1, 32, size, size, dtype=torch.float64) for size in (8, 4, 2, 2, 2)]
    assert not any(isinstance(m, nn.ReLU) for m in fused.head.modules())
    for a, b in zip(plain.head(levels), fused.head(levels), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_fusing_twice_is_fusing_once_and_names_stay(tiny_config):
    plain, fused = pair(tiny_config(MASK_RCNN), CONVOLUTIONS)
    before = [type(m) for m in fused.modules()]
    assert [type(m) for m in fuse_norm_relu(fused).modules()] == before
    assert list(plain.state_dict()) == list(fused.state_dict())


@torch.no_grad()
def features(model):
    return model.eval().backbone(X)


@RECOMPUTED
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


@pytest.mark.parametrize("first", ["fused", "checkpointed"])
def test_frozen_and_checkpointed_stages_of_a_model_that_recomputes(tiny_config, first):
    plain, fused = pair(tiny_config(MASK_RCNN, "MODEL.BACKBONE.FREEZE_AT", "2"), CONVOLUTIONS)
    if first == "checkpointed":
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
