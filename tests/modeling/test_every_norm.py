"""Every norm in every part of a model: builds, is standardized, trains a step and folds."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from tiny import FEW_PROPOSALS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gnws_d2 import StandardizationReport
from gnws_d2.layers import EstimatedBatchNorm2d, WSConv2d, fold, standardize_weight
from gnws_d2.layers.convert import followed_by_norm
from gnws_d2.modeling.norms import BCN_NORMS

# Values of NORM keys, and what the report calls them.
NORMS = {
    **{"GN": "GroupNorm", "LN": "LayerNorm", "BN": "BatchNorm2d", "SyncBN": "SyncBatchNorm"},
    **{"nnSyncBN": "SyncBatchNorm", "FrozenBN": "FrozenBatchNorm2d"},
    **dict.fromkeys(["naiveSyncBN", "naiveSyncBN_N"], "NaiveSyncBatchNorm"),
    "BCN": "BatchChannelNorm2d (BatchNorm2d)",
    "SyncBCN": "BatchChannelNorm2d (SyncBatchNorm2d)",
    **dict.fromkeys(["EstBCN", "SyncEstBCN"], "BatchChannelNorm2d (EstimatedBatchNorm2d)"),
}
# In the head of RetinaNet, which has statistics of each level.
OF_LEVELS = {
    **dict.fromkeys(["BN", "SyncBN"], "CycleBatchNormList"),
    **dict.fromkeys(BCN_NORMS, "BatchChannelNorm2d (CycleBatchNormList)"),
}
BACKBONE = {"backbone": "RESNETS", "fpn": "FPN"}
HEADS = {"box_head": "ROI_BOX_HEAD", "mask_head": "ROI_MASK_HEAD", "sem_seg_head": "SEM_SEG_HEAD"}
# Of each model: its parts, with the section of their NORM key; and its file.
MODELS = {
    "PanopticFPN": ({**BACKBONE, **HEADS}, "Digits/panoptic_fpn_R_18_gn_ws.yaml"),
    "RetinaNet": ({**BACKBONE, "head": "RETINANET"}, "Digits/retinanet_R_18_FPN_gn_ws.yaml"),
}


def batch() -> list[dict]:
    """Two images of two objects each."""
    torch.manual_seed(1)
    boxes = torch.tensor([[5.0, 5, 30, 30], [20, 30, 50, 60]])
    fields = {"gt_boxes": Boxes(boxes), "gt_classes": torch.tensor([1, 3])}
    fields["gt_masks"] = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for box in boxes])
    return [
        {
            "image": torch.randint(0, 256, (3, 64, width)).float(),
            "instances": Instances((64, width), **fields),
            "sem_seg": torch.randint(0, 2, (64, width)),
        }
        for width in (64, 96)
    ]


def losses(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    with EventStorage():
        return model.train()(batch())


@torch.no_grad()
def found(model: nn.Module) -> list[torch.Tensor]:
    [output] = model.eval()(batch()[:1])
    instances = output["instances"]
    assert len(instances)
    return [instances.scores, instances.pred_boxes.tensor, output.get("sem_seg", torch.empty(0))]


@pytest.mark.parametrize("first", range(len(NORMS)), ids=NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_detectron2_s_model_does_with_standardized_weights(
    tiny_config, name, first
):
    """The parts have different norms, and over all tests each part has each of them."""
    parts, file = MODELS[name]
    norms = dict(zip(parts, (list(NORMS) * 2)[first:], strict=False))
    opts = [word for part, norm in norms.items() for word in (f"MODEL.{parts[part]}.NORM", norm)]
    opts += [*FEW_PROPOSALS, "MODEL.FPN.OUT_CHANNELS", "64", "MODEL.BACKBONE.FREEZE_AT", "0"]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "10"]
    opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    wrapped = ["MODEL.META_ARCHITECTURE", "WeightStandardizedModel"]
    for section in ("BACKBONE", *HEADS.values()):  # Detectron2's own
        builder = tiny_config(file).MODEL[section].NAME.replace("_ws", "").removeprefix("WS")
        wrapped += [f"MODEL.{section}.NAME", builder]
    wrapped += ["MODEL.WS.META_ARCHITECTURE", name, "MODEL.WS.PARTS"]

    def build(*words: str) -> nn.Module:
        torch.manual_seed(0)
        return build_model(tiny_config(file, *opts, *words))

    # Of the components of this package, of Detectron2's in a wrapper, and of Detectron2's alone.
    ours, other, plain = build(), build(*wrapped, str(["stem", *parts])), build(*wrapped, "[]")
    assert not any(isinstance(m, WSConv2d) for m in plain.modules())
    states = other.state_dict(), plain.state_dict()
    assert list(ours.state_dict()) == list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())

    report = StandardizationReport.of(ours)
    assert report == StandardizationReport.of(other)
    rows = {row.part: row for row in report.rows}
    for part, norm in norms.items():
        kind = OF_LEVELS.get(norm, NORMS[norm]) if part == "head" else NORMS[norm]
        row = rows[part]
        assert row.norms == (kind,) and row.standardized == row.normalized > 0, part

    for conv, norm in followed_by_norm(ours).items():
        if isinstance(norm, FrozenBatchNorm2d):  # as where it was trained; activations explode at 1
            norm.running_var.fill_(conv.weight[0].numel())
    for module in ours.modules():
        if isinstance(module, EstimatedBatchNorm2d):
            module.moving_speed = 0.1
    for model in (ours, other, plain):
        model.load_state_dict(ours.state_dict())
        for module in model.backbone.modules():
            if isinstance(module, _BatchNorm):  # statistics as after many steps
                module.momentum = 1.0
    for key, module in ours.named_modules():
        if isinstance(module, WSConv2d):
            plain.get_submodule(key).weight.data = standardize_weight(module.weight.data)
    expected = losses(plain)
    step = losses(ours)
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses(other), step, rtol=0, atol=0)
    for one, expected in zip(found(ours), found(plain), strict=True):
        # Rounding, of logits up to 500 that norms with the statistics of few pixels have amplified.
        largest = expected.abs().max().item() if len(expected) else 0.0
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=max(1e-3, 3e-5 * largest))

    sum(step.values()).backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())
    torch.optim.SGD(ours.parameters(), lr=1e-4).step()
    folded = fold(ours)
    assert not any(type(m).__module__.startswith("gnws_d2") for m in folded.modules())
    torch.testing.assert_close(found(folded), found(ours), rtol=0, atol=0)


def test_levels_of_a_pyramid_have_statistics_of_their_own(tiny_config):
    """As Detectron2's head of RetinaNet has them with BN."""
    opts = ["MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']", "MODEL.RETINANET.NORM"]
    file = MODELS["RetinaNet"][1]
    anchors = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"]
    heads = []
    for norm in ("BCN", "BN"):
        torch.manual_seed(0)
        heads.append(build_model(tiny_config(file, *anchors, *opts, norm)).head)
    levels = [torch.randn(2, 32, 8, 8), 3 * torch.randn(2, 32, 4, 4) + 1]
    for head in heads:
        head(levels)
    ours, theirs = (head.cls_subnet[1] for head in heads)
    for mine, other in zip(ours.bn, theirs, strict=True):
        assert torch.equal(mine.running_mean, other.running_mean)
        assert torch.equal(mine.running_var, other.running_var)
    names = {name.rpartition("norm.")[2] for name, _ in ours.named_parameters()}
    assert names == {"weight", "bias", "bn.weight", "bn.bias"}
