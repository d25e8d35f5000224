"""All variants have the same weights, get the same input, and do the same work."""

import pytest
import torch
from variants import BASE, OURS, VARIANTS, Case, build, initial_state
from workloads import workload

BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.mark.parametrize("level", ["backbone", "model"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_every_variant_gets_the_same(small, level, mode):
    """The image that the backbone gets, and the boxes that the heads get."""
    case = Case(level, small, (64, 70), mode)
    state, work = initial_state(case), workload(case)
    first = None
    for name in (BASE, "GN + plain WS", OURS):
        model = build(BY_NAME[name], case, state)
        if name == BASE:  # is Detectron2's
            assert not any("gnws_d2.layers" in str(type(m)) for m in model.modules())
            for part in (model.backbone, model.roi_heads.box_head, model.roi_heads.mask_head):
                assert not any(type(m).__module__.startswith("gnws_d2") for m in part.modules())
        images, boxes = [], []
        model.backbone.register_forward_pre_hook(lambda _, args, to=images: to.append(args[0]))
        for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
            pooler.register_forward_pre_hook(lambda _, args, to=boxes: to.append(args[1]))
        step = work.step(model)
        step()
        step()  # the second is the first again
        assert images[0].shape == (1, 3, 64, 96) and torch.equal(*images)
        assert len(boxes) == (4 if level == "model" else 0)
        flat = [images[0], *(b.tensor for pooled in boxes[:2] for b in pooled)]
        second = [b.tensor for pooled in boxes[2:] for b in pooled]
        assert all(len(tensor) for tensor in flat)  # there are masks to predict
        assert all(map(torch.equal, flat[1:], second))
        first = first or flat
        assert all(map(torch.equal, first, flat))
        if level == "model" and mode == "train":  # the optimizer's step changes nothing
            assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
            assert any(p.grad is not None and p.grad.any() for p in model.parameters())
