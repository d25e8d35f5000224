"""Anchors that are chosen by the objects of one's own data."""

import numpy as np
import pytest
import torch
from coco_files import change_all, changed, config, make_coco
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torchvision.ops import box_iou

from gnws_d2.checkpoint import Checkpointer
from gnws_d2.projects.own_data import fit_to_data
from gnws_d2.projects.own_data.anchors import RATIOS, SIZES, _best

SMALL = "Small/faster_rcnn_R_18_FPN_gn_ws.yaml"
STRIDES = [4, 8, 16, 32, 64]
IMAGE = 256, 320  # height and width


def measured(objects, sizes, ratios):
    """The mean IoU of objects at random places with Detectron2's own anchors of a whole image."""
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=STRIDES)
    features = [torch.zeros(1, 1, IMAGE[0] // s, IMAGE[1] // s) for s in STRIDES]
    anchors = torch.cat([boxes.tensor for boxes in generator(features)])
    rng = np.random.default_rng(1)
    corners = rng.random((len(objects), 2)) * (np.array(IMAGE[::-1]) - objects)
    boxes = torch.tensor(np.hstack([corners, corners + objects]), dtype=torch.float32)
    return box_iou(boxes, anchors).max(dim=1).values.mean().item()


@pytest.mark.parametrize("side", [9, 40, 200])
@pytest.mark.parametrize("ratio", [1, 0.2])
def test_the_anchors_of_small_large_and_flat_objects(side, ratio):
    rng = np.random.default_rng(0)
    side = side * rng.lognormal(0, 0.2, 300).clip(0.7, 1.25)
    shape = np.sqrt(ratio * rng.lognormal(0, 0.2, 300).clip(0.7, 1.4))
    objects = np.stack([side / shape, side * shape], axis=1).clip(max=[310, 250])
    cfg = config("mine.json", name=SMALL)
    found, reason = _best(cfg, objects, STRIDES, {SIZES, RATIOS})
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    before = measured(objects, sizes, ratios)
    after = measured(objects, found.get(SIZES, sizes), found.get(RATIOS, ratios))
    assert after > before + 0.01 if found else before > 0.65
    assert after > (0.5 if side.min() < 8 else 0.6)
    if found:
        said = [float(word.strip("().,")) for word in reason.split() if "0." in word]
        assert said == pytest.approx([after, before], abs=0.08)


def test_what_the_user_or_the_weights_have_chosen_stays(tmp_path):
    file = make_coco(tmp_path)
    change_all(file, bbox=[1, 1, 6, 0.8], segmentation=[], area=4.8)  # small and flat
    cfg = config(file, file, name=SMALL)
    default, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    fitted = fit_to_data(cfg, explicit=())
    anchors = fitted.MODEL.ANCHOR_GENERATOR
    assert min(anchors.ASPECT_RATIOS[0]) < 0.25 and anchors.SIZES != default
    assert fit_to_data(cfg).MODEL.ANCHOR_GENERATOR == cfg.MODEL.ANCHOR_GENERATOR
    only_ratios = fit_to_data(cfg, explicit={SIZES}).MODEL.ANCHOR_GENERATOR
    assert only_ratios.SIZES == default and only_ratios.ASPECT_RATIOS != ratios
    chosen = fit_to_data(cfg, explicit={SIZES, RATIOS}).MODEL.ANCHOR_GENERATOR
    assert chosen == cfg.MODEL.ANCHOR_GENERATOR

    Checkpointer(build_model(fitted), str(tmp_path), cfg=fitted).save("fitted")
    weights = str(tmp_path / "fitted.pth")
    with changed(file) as coco:  # larger objects, of which others would be made
        for annotation in coco["annotations"]:
            annotation["bbox"] = [0, 0, 60, 45]
    other = fit_to_data(cfg, explicit=())
    assert other.MODEL.ANCHOR_GENERATOR != anchors
    for key, named in (("MODEL.WEIGHTS", ""), ("SEED", weights)):  # fine-tuned, or resumed
        finetuned = config(file, file, key, weights if not named else 1, name=SMALL)
        kept = fit_to_data(finetuned, explicit=(), weights=named).MODEL.ANCHOR_GENERATOR
        assert kept == anchors


def test_weights_of_other_anchors_are_warned_of(tmp_path, caplog):
    cfg = config("mine.json", name=SMALL)
    Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("trained")
    other = config("mine.json", (), SIZES, "[[8],[16],[32],[64],[128]]", name=SMALL)
    model = build_model(other)
    with caplog.at_level("WARNING"):
        Checkpointer(model, cfg=other).load(str(tmp_path / "trained.pth"))
    assert f"{SIZES} [[20], [36], [64], [108], [180]] (the config has [[8]" in caplog.text
