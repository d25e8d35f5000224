"""Which object each proposal of the second stage is trained on."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from gnws_d2 import load_config

FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
SIZE = (100, 100)


def build(name, *opts):
    shapes = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 7)}
    # Everything is sampled, so that nothing depends on what is drawn.
    opts = ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0", "MODEL.DEVICE", "cpu", *opts]
    opts += ["MODEL.ROI_BOX_HEAD.CONV_DIM", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]
    return build_roi_heads(load_config(name, opts), shapes)


def proposals(*rows):
    boxes, logits = Boxes(torch.tensor(rows).float()), torch.zeros(len(rows))
    return Instances(SIZE, proposal_boxes=boxes, objectness_logits=logits)


def targets(*rows):
    boxes = Boxes(torch.tensor(rows).float().reshape(-1, 4))
    return Instances(SIZE, gt_boxes=boxes, gt_classes=torch.arange(len(rows)))


def sample(heads, proposals, targets):
    """The class of each sampled box, by its coordinates: a list, as boxes may be the same."""
    with EventStorage() as storage:
        [found] = heads.label_and_sample_proposals([proposals], [targets])
    latest = {name: value for name, (value, _) in storage.latest().items()}
    foreground = int((found.gt_classes != 80).sum())
    assert latest["roi_head/num_fg_samples"] == foreground
    assert latest["roi_head/num_bg_samples"] == len(found) - foreground
    names = {"proposal_boxes", "objectness_logits", "gt_classes", "gt_boxes", "gt_masks"}
    assert set(found.get_fields()) <= names
    classes: dict[tuple, list[int]] = {}
    for box, label in zip(found.proposal_boxes, found.gt_classes.tolist(), strict=True):
        classes.setdefault(tuple(box.tolist()), []).append(label)
    return found, {box: sorted(labels) for box, labels in classes.items()}


# IoUs of 0.8 with the first object and of 0.6 with the second, which no proposal overlaps more.
FIRST, SECOND = (0, 0, 80, 10), (0, 0, 60, 10)
SHARED = (0, 0, 100, 10)


@pytest.mark.parametrize(("name", "expected"), [(FASTER, 0), (MASK, 1)])
def test_two_objects_on_one_proposal(name, expected):
    """With masks, the later object takes it. Matched after the ground truth is added, which each
    object overlaps most, it would stay with the first."""
    found, classes = sample(build(name), proposals(SHARED), targets(FIRST, SECOND))
    assert classes == {SHARED: [expected], FIRST: [0], SECOND: [1]}
    [shared] = found[(found.proposal_boxes.tensor == torch.tensor(SHARED)).all(1)].gt_boxes
    assert shared.tolist() == list((FIRST, SECOND)[expected])


def test_a_proposal_below_the_floor_stays_with_the_first():
    low = (0, 0, 45, 10)  # an IoU of 0.45 with SHARED
    _, classes = sample(build(MASK), proposals(SHARED), targets(FIRST, low))
    assert classes == {SHARED: [0], FIRST: [0], low: [1]}


@pytest.mark.parametrize("name", [FASTER, MASK])
def test_ground_truth_belongs_to_itself(name):
    """Even where two objects have the same box."""
    here, there = (10, 10, 50, 50), (70, 70, 90, 90)
    _, classes = sample(build(name), proposals(there), targets(here, here))
    assert classes == {here: [0, 1], there: [80]}


def test_without_the_ground_truth_among_the_proposals():
    heads = build(FASTER, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False")
    assert sample(heads, proposals(SHARED), targets(FIRST))[1] == {SHARED: [0]}


@pytest.mark.parametrize("name", [FASTER, MASK])
def test_an_image_without_objects_is_background(name):
    found, classes = sample(build(name), proposals(SHARED), targets())
    assert classes == {SHARED: [80]} and not found.has("gt_boxes")


def test_masks_go_with_their_objects():
    objects = targets(FIRST, SECOND)
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[1, 0, 0] = True
    objects.gt_masks = BitMasks(masks)
    given = proposals(SHARED)
    found, _ = sample(build(MASK), given, objects)
    assert (found.gt_masks.tensor[:, 0, 0] == (found.gt_classes == 1)).all()
    assert set(given.get_fields()) == {"proposal_boxes", "objectness_logits"}
