"""All variants have the same weights, get the same input, and do the same work."""

import pytest
import torch
import variants
from variants import BASE, OURS, PLAIN, build, initial_state
from workloads import Case, convolutions, workload

from gnws_d2.config import ConfigError

MODEL = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


@pytest.fixture(scope="module")
def state() -> dict:
    return initial_state(MODEL)


def make(name: str, mode: str, state: dict) -> torch.nn.Module:
    variant = next(v for v in variants.variants(mode) if v.name == name)
    return build(variant, MODEL, "cpu", mode == "train", state)


def test_the_eight_architectures_are_packaged_configs():
    assert len(variants.ARCHITECTURES) == 8
    for model in variants.ARCHITECTURES:
        cfg = variants.load_config(model, [], "cpu")
        assert cfg.MODEL.BACKBONE.NAME == "build_ws_resnet_fpn_backbone"


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_weights_are_the_same(state, mode):
    for variant in variants.variants(mode):
        if variant.folded:
            continue
        model = build(variant, MODEL, "cpu", mode == "train", state)
        tensors = model.state_dict()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
        assert model.training == (mode == "train")


def test_stock_has_nothing_of_this_package(state):
    model = make(BASE, "train", state)
    assert not [m for m in model.modules() if type(m).__module__.startswith("gnws_d2")]
    assert len(convolutions(model)) == len(convolutions(make(OURS, "train", state)))


def test_an_option_whose_key_does_not_exist_is_an_error(state, monkeypatch):
    monkeypatch.setitem(variants.OPTIONS, "faster", ["MODEL.WS.FASTER", "True"])
    with pytest.raises(ConfigError, match=r"MODEL\.WS\.FASTER"):
        make(f"{OURS}, faster", "train", state)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["backbone", "model"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_every_variant_gets_the_same(state, level, mode):
    """The picture that the backbone gets, and the boxes that the heads get."""
    work = workload(Case(level, MODEL, (64, 70), 2, mode))
    got = []
    for name in (BASE, PLAIN, OURS):
        model = make(name, mode, state)
        inputs = [[], [], []]
        parts = (model.backbone, model.roi_heads.box_pooler, model.roi_heads.mask_pooler)
        for part, kept in zip(parts, inputs, strict=True):
            part.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args))
        step = work.step(model)
        step()
        step()  # the second is the first again
        got.append(inputs)
    for pictures, boxes, mask_boxes in got:
        (first,) = got[0][0][0]
        assert all(torch.equal(picture, first) for (picture,) in pictures)
        assert first.shape == (2, 3, 64, 96)
        for found, expected in ((boxes, got[0][1]), (mask_boxes, got[0][2])):
            assert len(found) == (0 if level == "backbone" else 2)
            for (_, a), (_, b) in zip(found, expected[:1] * len(found), strict=True):
                assert all(torch.equal(x.tensor, y.tensor) for x, y in zip(a, b, strict=True))
    if level == "model":
        assert all(len(b) for _, boxes in got[0][2] for b in boxes)  # there are masks to predict


def test_a_training_step_leaves_the_weights_as_they_are(state):
    model = make(OURS, "train", state)
    workload(Case("model", MODEL, (64, 64), 1, "train")).step(model)()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
