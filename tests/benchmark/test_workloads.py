"""All variants have the same weights, get the same input, and do the same work."""

import dataclasses

import pytest
import torch
from case import ARCHITECTURES, Case
from variants import BASE, OURS, PLAIN, VARIANTS, Variant, build, initial_state
from workloads import workload

from gnws_d2.errors import ConfigError
from gnws_d2.layers import StandardizedConv

BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def case(small) -> Case:
    return Case("backbone", small, (64, 70), 2, "train")


@pytest.fixture(scope="module")
def state(case) -> dict:
    return initial_state(case)


def test_the_eight_architectures_are_packaged_configs():
    assert len(ARCHITECTURES) == 8
    for model in ARCHITECTURES:
        cfg = Case("model", model, (64, 64), 1, "train").config()
        assert cfg.MODEL.BACKBONE.NAME == "build_ws_resnet_fpn_backbone"


def test_the_weights_are_the_same(case, state):
    for variant in VARIANTS:
        if not variant.folded:
            tensors = build(variant, case, state).state_dict()
            assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())


def test_the_base_has_backbone_and_heads_of_detectron2(case, state):
    model = build(BY_NAME[BASE], case, state)
    heads = model.roi_heads
    for part in (model.backbone, heads.box_head, heads.mask_head):
        assert not [m for m in part.modules() if type(m).__module__.startswith("gnws_d2")]
    assert not [m for m in model.modules() if isinstance(m, StandardizedConv)]


def test_an_option_whose_key_does_not_exist_is_an_error(case, state):
    with pytest.raises(ConfigError, match=r"MODEL\.WS\.FASTER"):
        build(Variant("faster", ["MODEL.WS.FASTER", "True"]), case, state)


@pytest.mark.parametrize("level", ["backbone", "model"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_every_variant_gets_the_same(case, state, level, mode):
    """The image that the backbone gets, and the boxes that the heads get."""
    case = dataclasses.replace(case, level=level, mode=mode)
    work = workload(case)
    first = None
    for name in (BASE, PLAIN, OURS):
        model = build(BY_NAME[name], case, state)
        images, boxes = [], []
        model.backbone.register_forward_pre_hook(lambda _, args, to=images: to.append(args[0]))
        for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
            pooler.register_forward_pre_hook(lambda _, args, to=boxes: to.append(args[1]))
        step = work.step(model)
        step()
        step()  # the second is the first again
        assert images[0].shape == (2, 3, 64, 96) and torch.equal(*images)
        assert len(boxes) == (4 if level == "model" else 0)
        flat = [images[0], *(b.tensor for pooled in boxes[:2] for b in pooled)]
        second = [b.tensor for pooled in boxes[2:] for b in pooled]
        assert all(len(tensor) for tensor in flat)  # there are masks to predict
        assert all(map(torch.equal, flat[1:], second))
        first = first or flat
        assert all(map(torch.equal, first, flat))


def test_a_training_step_leaves_the_weights_as_they_are(case, state):
    case = dataclasses.replace(case, level="model")
    model = build(BY_NAME[OURS], case, state)
    workload(case).step(model)()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
