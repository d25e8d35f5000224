"""Anchors on the padding, objects without an anchor, and what the losses are divided by."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from gnws_d2 import load_config

CONFIG = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
STRIDES = (4, 8, 16, 32, 64)
EVERY_ANCHOR = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000", "MODEL.RPN.POSITIVE_FRACTION", "1.0"]


def build(*opts):
    shapes = {f"p{i + 2}": ShapeSpec(channels=256, stride=s) for i, s in enumerate(STRIDES)}
    torch.manual_seed(0)
    return build_proposal_generator(load_config(CONFIG, ["MODEL.DEVICE", "cpu", *opts]), shapes)


def features_of(height, width):
    sizes = [(1, 256, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    generator = torch.Generator().manual_seed(1)
    return {f"p{i + 2}": torch.randn(size, generator=generator) for i, size in enumerate(sizes)}


def instances(size, *boxes):
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(tensor), gt_classes=torch.zeros(len(boxes)).long())


def label(batch, size, *boxes, opts=()):
    """For an image in a padded batch: labels, matched boxes and boxes of all anchors."""
    rpn = build(*EVERY_ANCHOR, *opts)
    anchors = rpn.anchor_generator(list(features_of(*batch).values()))
    [labels], [matched] = rpn.label_and_sample_anchors(anchors, [instances(size, *boxes)])
    return labels, matched, Boxes.cat(anchors)


def on_image(batch, size):
    """By rows and columns of the grids, as MMDetection counts them."""
    flags = []
    for stride in STRIDES:
        flag = torch.zeros([math.ceil(side / stride) for side in batch], dtype=torch.bool)
        rows, columns = (math.ceil(math.ceil(side / 32) * 32 / stride) for side in size)
        flag[:rows, :columns] = True
        flags.append(flag.flatten().repeat_interleave(3))
    return torch.cat(flags)


@pytest.mark.parametrize("size", [(128, 224), (160, 150), (97, 65), (160, 224)])
def test_anchors_on_the_padding_are_left_out(size):
    labels, _, _ = label((160, 224), size, (10, 10, 60, 60))
    assert labels.dtype == torch.int8
    kept = on_image((160, 224), size)
    assert (labels[~kept] == -1).all()
    assert (labels == 1).any() and (labels == 0).sum() > 0.8 * kept.sum()
    # Those that remain are labeled as without padding.
    alone, _, _ = label([math.ceil(side / 32) * 32 for side in size], size, (10, 10, 60, 60))
    assert torch.equal(labels[kept], alone)


def test_an_object_at_the_edge_gets_its_best_anchor_on_the_image():
    """Its best of all has an IoU of 0.61 and its center at y = 64, the first row of the padding;
    next comes y = 60."""
    box = (80, 49, 140, 77)
    for size, row in (((64, 224), 60), ((160, 224), 64)):
        labels, matched, anchors = label((160, 224), size, box)
        centers = anchors.get_centers()[labels == 1]
        assert len(centers) and (centers[:, 1] - row).abs().max() < 0.01
        assert (matched[labels == 1] == torch.tensor(box)).all()


def test_a_small_object_gets_no_anchor_and_a_larger_one_does():
    for side, found in ((8, False), (16, False), (18, True)):
        labels, _, _ = label((160, 224), (160, 224), (100, 100, 100 + side, 100 + side))
        assert bool((labels == 1).any()) == found


def test_anchors_across_the_boundary_are_left_out_where_the_key_says_so():
    opts = ["MODEL.RPN.BOUNDARY_THRESH", "0"]
    labels, _, anchors = label((160, 224), (160, 224), (10, 10, 60, 60), opts=opts)
    inside = anchors.inside_box((160, 224))
    assert (labels[~inside] == -1).all() and (labels[inside] >= 0).any()


@pytest.mark.parametrize(
    ("objects", "divisor"),
    [([(10, 10, 60, 60)], 256), ([], 257), ([(100, 100, 108, 108)], 257)],
    ids=["an object", "none", "one without an anchor"],
)
def test_losses_are_divided_by_the_sampled_anchors(objects, divisor):
    rpn, size = build(), (160, 224)
    features = features_of(*size)
    sampled = []
    draw = rpn._subsample_labels
    rpn._subsample_labels = lambda labels: sampled.append(draw(labels)) or sampled[-1]
    with EventStorage():
        images = ImageList(torch.zeros(1, 3, *size), [size])
        _, losses = rpn(images, features, [instances(size, *objects)])
    [labels] = sampled
    logits, _ = rpn.rpn_head(list(features.values()))
    logits = torch.cat([level.permute(0, 2, 3, 1).flatten() for level in logits])
    counted = labels >= 0
    total = F.binary_cross_entropy_with_logits(
        logits[counted], labels[counted].float(), reduction="sum"
    )
    assert losses["loss_rpn_cls"].item() == pytest.approx(total.item() / divisor, rel=1e-5)
    assert bool(losses["loss_rpn_loc"]) == (divisor == 256)


@torch.no_grad()
def test_inference_is_that_of_rpn():
    ours, theirs = build().eval(), build("MODEL.PROPOSAL_GENERATOR.NAME", "RPN").eval()
    theirs.load_state_dict(ours.state_dict())
    images = ImageList(torch.zeros(1, 3, 160, 224), [(150, 200)])
    [a], [b] = (rpn(images, features_of(160, 224))[0] for rpn in (ours, theirs))
    assert len(a) and torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
    assert torch.equal(a.objectness_logits, b.objectness_logits)
