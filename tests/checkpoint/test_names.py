"""The names in MMDetection and in Detectron2: one to one, and nothing passes that does not fit."""

import json
from pathlib import Path

import pytest
import torch

from gnws_d2 import load_config
from gnws_d2.checkpoint import detectron2_to_mmdet, mmdet_to_detectron2
from gnws_d2.checkpoint.names import mmdet_name
from gnws_d2.checkpoint.structure import shapes_of
from gnws_d2.errors import CheckpointError

PARITY = Path(__file__).parents[1] / "parity"
MANIFESTS = sorted(PARITY.glob("*.manifest.json"))
FASTER_R50 = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
FASTER_R101 = "COCO-Detection/faster_rcnn_R_101_FPN_gn_ws_1x.yaml"
MASK_X101 = "COCO-InstanceSegmentation/mask_rcnn_X_101_32x4d_FPN_gn_ws_2x.yaml"
DIGITS = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def zeros(shapes):
    """Tensors of these shapes that take no memory."""
    return {name: torch.zeros(()).expand(tuple(shape)) for name, shape in shapes.items()}


def in_mmdet(config):
    return zeros({mmdet_name(n): shape for n, shape in shapes_of(load_config(config)).items()})


@pytest.fixture
def faster():
    """What a published file of Faster R-CNN R-50 holds."""
    return zeros(json.loads(MANIFESTS[0].read_text()))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name.split("_coco")[0])
def test_mmdetections_own_manifests_are_mapped_and_back(file):
    """Names and shapes written by MMDetection itself."""
    tensors = zeros(json.loads(file.read_text()))
    converted = mmdet_to_detectron2(tensors)
    assert len(converted) == len(tensors)
    back = detectron2_to_mmdet(converted)
    assert list(back) == list(tensors)
    assert all(back[name] is tensors[name] for name in tensors)


@pytest.mark.parametrize("config", [FASTER_R101, MASK_X101, DIGITS])
def test_other_architectures_are_mapped_and_back(config):
    tensors = zeros(shapes_of(load_config(config)))
    there = detectron2_to_mmdet(tensors)
    assert set(there).isdisjoint(tensors)
    assert list(mmdet_to_detectron2(there)) == list(tensors)
    assert mmdet_to_detectron2(there, config).keys() == tensors.keys()


def test_an_imagenet_backbone_has_bare_names(faster):
    bare = {n.removeprefix("backbone."): t for n, t in faster.items() if "backbone." in n}
    bare |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    converted = mmdet_to_detectron2(bare)
    assert {"stem.conv1.norm.weight", "res2.0.shortcut.norm.bias", "linear.bias"} < set(converted)
    assert list(detectron2_to_mmdet(converted)) == list(bare)
    del bare["fc.weight"], bare["fc.bias"]
    assert len(mmdet_to_detectron2(bare, FASTER_R50)) == len(converted) - 2


def test_a_deeper_file_says_which_config_fits(faster):
    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.layer3\.6\.") as error:
        mmdet_to_detectron2(in_mmdet(FASTER_R101), FASTER_R50)
    assert f"It fits {FASTER_R101}" in str(error.value)
    with pytest.raises(CheckpointError, match=r"missing: backbone\.layer3\.6\."):
        mmdet_to_detectron2(faster, FASTER_R101)


def test_another_number_of_classes_is_named(faster):
    cfg = load_config(FASTER_R50, ["MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    with pytest.raises(
        CheckpointError, match=r"fc_cls\.weight \(81, 1024\) instead of \(4, 1024\).*NUM_CLASSES 80"
    ):
        mmdet_to_detectron2(faster, cfg)
    assert len(mmdet_to_detectron2(in_mmdet(FASTER_R50))) == len(faster)


def test_a_file_of_mmdetection_1_is_recognized(faster):
    named = {name.removeprefix("roi_head."): tensor for name, tensor in faster.items()}
    faster["roi_head.bbox_head.fc_reg.weight"] = torch.zeros(324, 1024)
    faster["roi_head.bbox_head.fc_reg.bias"] = torch.zeros(324)
    for old in (named, faster):
        with pytest.raises(CheckpointError, match=r"MMDetection 1\.x.*upgrade_model_version"):
            mmdet_to_detectron2(old)


def test_what_is_not_finite_is_named(faster):
    faster["neck.fpn_convs.2.gn.bias"] = torch.full((256,), 3e38)  # their sum overflows
    assert len(mmdet_to_detectron2(faster)) == len(faster)
    faster["neck.fpn_convs.2.gn.bias"][7] = torch.inf
    with pytest.raises(CheckpointError, match=r"neck\.fpn_convs\.2\.gn\.bias has NaN or infinite"):
        mmdet_to_detectron2(faster)


NAMES = sorted(json.loads(MANIFESTS[0].read_text()))
VALUES = [
    *(None, "text", torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.complex64)),
    *(torch.zeros(3, 3).to_sparse(), torch.zeros((), device="meta"), torch.zeros(())),
    *(torch.zeros(0), torch.tensor([torch.nan])),
]
ADDED = [
    *("", "\n", 3, "fc", "backbone.layer5.0.conv1.weight", "backbone.layer1.٣.gn1.bias"),
    *("backbone.layer3.01.gn1.bias", f"{NAMES[0]}x"),
]
REMOVED = object()
DAMAGES = {
    **{f"without {name}": {name: REMOVED} for name in NAMES[::20]},
    **{f"{i} is {v}": {NAMES[40 * i % len(NAMES)]: v} for i, v in enumerate(VALUES)},
    **{f"{name!r} is added": {name: torch.zeros(64)} for name in ADDED},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_is_damaged_is_refused_with_a_checkpoint_error(faster, damage):
    damaged = {n: t for n, t in {**faster, **damage}.items() if t is not REMOVED}
    for convert in (mmdet_to_detectron2, detectron2_to_mmdet):
        with pytest.raises(CheckpointError):
            convert(damaged)
