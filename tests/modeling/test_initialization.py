"""New layers start from the distributions of MMDetection, by its documented rules."""

import math

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from torch import nn

from gnws_d2 import load_config

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"


def check(weight: torch.Tensor, deviation: float, uniform: bool) -> None:
    """Mean, standard deviation and shape, within four standard errors of as many draws."""
    values, n = weight.detach().double().flatten(), weight.numel()
    kurtosis = 1.8 if uniform else 3.0  # the fourth moment over the squared variance
    assert abs(values.mean()) < 4 * deviation / math.sqrt(n)
    error = deviation * math.sqrt((kurtosis - 1) / (4 * n))
    assert abs(values.std() - deviation) < 4 * error
    fourth = (values / values.std()).pow(4).mean()
    assert abs(fourth - kurtosis) < 40 / math.sqrt(n)
    if uniform:
        assert values.abs().max() <= math.sqrt(3) * deviation * (1 + 1e-6)


def xavier(fan_in: int, fan_out: int) -> float:
    return math.sqrt(2 / (fan_in + fan_out))


@pytest.fixture(scope="module")
def mask_rcnn() -> nn.Module:
    torch.manual_seed(0)
    return build_model(load_config(MASK_RCNN, ["MODEL.DEVICE", "cpu"]))


def test_the_heads(mask_rcnn):
    heads = mask_rcnn.roi_heads
    check(heads.box_head.fc1.weight, xavier(256 * 7 * 7, 1024), uniform=True)
    check(heads.mask_head.predictor.weight, math.sqrt(2 / 80), uniform=False)
    check(heads.box_predictor.cls_score.weight, 0.01, uniform=False)
    check(heads.box_predictor.bbox_pred.weight, 0.001, uniform=False)
    check(heads.mask_head.deconv.weight, math.sqrt(2 / (256 * 4)), uniform=False)
    for head in (heads.box_head, heads.mask_head):
        for conv in head.conv_norm_relus:
            check(conv.weight, math.sqrt(2 / (256 * 9)), uniform=False)
    rpn = mask_rcnn.proposal_generator.rpn_head
    layers = [rpn.conv, rpn.objectness_logits, rpn.anchor_deltas]
    for layer in layers:
        check(layer.weight, 0.01, uniform=False)
    layers += [heads.box_head.fc1, heads.mask_head.predictor, heads.mask_head.deconv]
    assert not any(layer.bias.any() for layer in layers)


def test_the_pyramid(mask_rcnn):
    """By the config of a published model."""
    fpn = mask_rcnn.backbone
    for level in (2, 3, 4, 5):
        lateral = getattr(fpn, f"fpn_lateral{level}").weight
        check(lateral, xavier(64 * 2**level, 256), uniform=True)
        check(getattr(fpn, f"fpn_output{level}").weight, xavier(2304, 2304), uniform=True)


def test_the_laterals_alone_are_changed():
    cfg = load_config(MASK_RCNN, ["MODEL.DEVICE", "cpu"])
    states = []
    for name in ("build_ws_resnet_fpn_backbone", "build_resnet_fpn_backbone"):
        cfg.MODEL.BACKBONE.NAME = name
        torch.manual_seed(0)
        states.append(build_backbone(cfg).state_dict())
    changed = {name for name, tensor in states[0].items() if (tensor != states[1][name]).any()}
    assert changed == {f"fpn_lateral{level}.weight" for level in (2, 3, 4, 5)}
