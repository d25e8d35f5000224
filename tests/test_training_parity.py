"""One training step against MMDetection's own (tests/parity/README.md says what those files are).

Weights, images and objects are the same, everything is computed in float64, and what MMDetection
drew at random is taken from its files: candidates, targets, losses and gradients have to be equal.
"""

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from parity.training.scenes import images
from parity.weights import mmdet_state_dict
from torch import nn
from torch.overrides import TorchFunctionMode

from gnws_d2 import model_zoo
from gnws_d2.checkpoint import mmdet_to_detectron2
from gnws_d2.checkpoint.names import mmdet_name

FOLDER = Path(__file__).parent / "parity"
MASK = "mask-rcnn_r50_fpn_gn-ws-all_2x_coco"
FASTER = "faster-rcnn_r50_fpn_gn-ws-all_1x_coco"
CONFIGS = {
    MASK: "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml",
    FASTER: "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml",
}
CASES = [(MASK, "plain"), (MASK, "tiny"), (MASK, "sizes"), (FASTER, "plain")]
LOSSES = {"loss_rpn_bbox": "loss_rpn_loc", "loss_bbox": "loss_box_reg"}
# MMDetection adds the epsilon of float32 to the numbers it divides losses by, other than loss_mask.
EPSILON = float(np.finfo(np.float32).eps)
pytestmark = pytest.mark.slow


class Float64(TorchFunctionMode):
    """Computes in float64 what asks for float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def double(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        kwargs = {name: double(value) for name, value in (kwargs or {}).items()}
        return func(*map(double, args), **kwargs)


@pytest.fixture(autouse=True)
def default_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw(kind, expected, counts, called, truths=(0, 0)):
    """A stand-in for ``subsample_labels`` that draws what MMDetection drew, of the same candidates.
    It puts the ground truth in front of the proposals, and Detectron2 behind them."""

    def subsample(labels, num_samples, positive_fraction, bg_label):
        i = called[kind]
        called[kind] += 1
        positive = torch.nonzero((labels != -1) & (labels != bg_label))[:, 0].tolist()
        count = counts[f"{kind}_{i}"]
        assert len(positive) == count["positive"]
        assert int((labels == bg_label).sum()) == count["negative"]
        if kind == "rpn":
            assert positive == sorted(expected[f"rpn_positive_{i}"].tolist())
        drawn = [
            torch.from_numpy(expected[f"{kind}_sampled_{side}_{i}"].astype(np.int64) - truths[i])
            % len(labels)
            for side in ("positive", "negative")
        ]
        assert set(drawn[0].tolist()) <= set(positive)
        assert (labels[drawn[1]] == bg_label).all()
        assert len(drawn[0]) <= int(num_samples * positive_fraction)
        assert sum(map(len, drawn)) == num_samples
        return drawn

    return subsample


def batch_of(scene: str) -> list[dict]:
    batch = []
    for picture in images(scene):
        height, width = picture["image"].shape[:2]
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.from_numpy(picture["boxes"])),
            gt_classes=torch.from_numpy(picture["classes"]),
            gt_masks=BitMasks(picture["masks"]),
        )
        rgb = picture["image"][:, :, ::-1].transpose(2, 0, 1).copy()
        batch.append({"image": torch.from_numpy(rgb), "instances": instances})
    return batch


@cache
def model_of(case: str, proposals: int, seed: int) -> nn.Module:
    """The model of a case, which its scenes share, to train on so many proposals of each image."""
    cfg = model_zoo.get_config(CONFIGS[case])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = proposals
    model = build_model(cfg).double().train()
    tensors = mmdet_state_dict(FOLDER / f"{case}.manifest.json", seed)
    model.load_state_dict(mmdet_to_detectron2(tensors), strict=True)
    return model


@pytest.mark.parametrize(("case", "scene"), CASES)
def test_a_training_step_in_float64(case, scene):
    file = FOLDER / "training" / f"{case}.{scene}.training"
    facts = json.loads(file.with_suffix(".training.json").read_text())
    with np.load(file.with_suffix(".training.npz")) as arrays:
        expected = dict(arrays)
    called: dict[str, int] = defaultdict(int)
    with Float64(), EventStorage():
        model = model_of(case, facts["rois_per_picture"], facts["seed_of_weights"])
        model.zero_grad()
        batch = batch_of(scene)
        counts, truths = facts["counts"], [len(picture["instances"]) for picture in batch]
        with (
            mock.patch.object(rpn, "subsample_labels", draw("rpn", expected, counts, called)),
            mock.patch.object(
                roi_heads, "subsample_labels", draw("roi", expected, counts, called, truths)
            ),
        ):
            losses = model(batch)
        sum(losses.values()).backward()
    assert called == {"rpn": 2, "roi": 2}

    assert losses.keys() == {LOSSES.get(name, name) for name in facts["losses"]}
    for name, value in facts["losses"].items():
        if name != "loss_mask":
            kind = "rpn" if "rpn" in name else "roi"
            divisor = sum(facts["counts"][f"{kind}_{i}"]["normalizer"] for i in range(2))
            value *= (divisor + EPSILON) / divisor
        assert losses[LOSSES.get(name, name)].item() == pytest.approx(value, rel=1e-12), name
    gradients = {mmdet_name(name): p.grad for name, p in model.named_parameters()}
    assert {name for name, grad in gradients.items() if grad is None} == set(facts["frozen"])
    for name, norm in facts["gradient_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=2e-9), name
    for name in facts["sampled_gradients"]:
        value = expected[f"gradient_value/{name}"]
        index = torch.from_numpy(expected[f"gradient_index/{name}"].astype(np.int64))
        difference = np.linalg.norm(gradients[name].flatten()[index].numpy() - value)
        assert difference <= 2e-9 * np.linalg.norm(value), name
