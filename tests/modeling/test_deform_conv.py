"""Deformable convolutions and blocks, with Detectron2's compiled part and without it."""

import pytest
import torch
from detectron2 import layers as detectron2_layers
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import resnet
from torch import nn
from torchvision.ops import DeformConv2d

from gnws_d2 import load_config, standardize
from gnws_d2.layers import fold, standardize_weight
from gnws_d2.layers.convert import make_standardized
from gnws_d2.modeling.deform_conv import DeformConv, WSDeformConv
from gnws_d2.modeling.standardize import _CLASSES


class Deformable(DeformConv):
    """Made as Detectron2 makes its own."""

    def __init__(self, *args, deformable_groups: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)


CLASSES = [Deformable]
if issubclass(detectron2_layers.DeformConv, nn.Module):
    CLASSES += [detectron2_layers.DeformConv, detectron2_layers.ModulatedDeformConv]


def inputs(modulated: bool = True) -> list[torch.Tensor]:
    """x, offset and, if modulated, mask, for a 3x3 kernel of stride 2 and two offset groups."""
    torch.manual_seed(1)
    sizes = [(2, 4, 7, 9), (2, 36, 4, 5), (2, 18, 4, 5)][: 2 + modulated]
    return [torch.randn(size, dtype=torch.float64) for size in sizes]


def build(cls: type[nn.Module], standardized: bool = False) -> nn.Module:
    torch.manual_seed(0)
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
    conv = cls(4, 6, **options, deformable_groups=2, norm=nn.GroupNorm(2, 6)).double()
    nn.init.normal_(conv.norm.weight)
    if standardized:
        assert make_standardized(conv, _CLASSES) == "" and type(conv) is WSDeformConv
    return conv


@pytest.mark.parametrize(
    ("cls", "standardized"), [(Deformable, False), *((cls, True) for cls in CLASSES)]
)
def test_convolves_as_torchvision_does(cls, standardized):
    conv = build(cls, standardized)
    x, offset, *mask = inputs(modulated=cls is not detectron2_layers.DeformConv)
    reference = DeformConv2d(4, 6, 3, stride=2, padding=1, bias=False).double()
    weight = standardize_weight(conv.weight) if standardized else conv.weight
    reference.weight = nn.Parameter(weight.detach())
    torch.testing.assert_close(conv(x, offset, *mask), conv.norm(reference(x, offset, *mask)))
    assert conv(x[:0], offset[:0], *(m[:0] for m in mask)).shape == (0, 6, 4, 5)
    assert "in_channels=4, out_channels=6" in repr(conv)


def test_the_gradient_of_the_standardized_weight():
    conv = build(Deformable, standardized=True)
    x, offset, mask = (tensor.requires_grad_() for tensor in inputs())

    def convolved(x, offset, mask, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x, offset, mask))

    assert torch.autograd.gradcheck(convolved, (x, offset, mask, conv.weight), atol=1e-4)


@pytest.mark.parametrize("cls", CLASSES)
def test_fold_gives_back_the_class_and_the_numbers(cls):
    conv = build(cls, standardized=True)
    folded = fold(nn.Sequential(conv))[0]
    assert type(folded) is cls
    torch.testing.assert_close(folded.weight.data, standardize_weight(conv.weight).detach())


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("groups", "freeze_at", "name"),
                         [(1, 0, "build_ws_resnet_fpn_backbone"),
                          (2, 4, "build_ws_resnet_backbone")])  # fmt: skip
def test_a_backbone_has_the_blocks_that_detectron2_would_build(
    groups, freeze_at, name, modulated, monkeypatch
):
    """Against Detectron2's own builder, with a convolution that exists in place of its own."""
    cfg = load_config("Digits/mask_rcnn_R_50_FPN_deform_gn_ws.yaml")
    resnets, backbone = cfg.MODEL.RESNETS, cfg.MODEL.BACKBONE
    resnets.DEFORM_MODULATED, resnets.DEFORM_NUM_GROUPS = modulated, groups
    backbone.FREEZE_AT, backbone.NAME = freeze_at, name
    ours = build_backbone(cfg, ShapeSpec(channels=3))
    monkeypatch.setattr(resnet, "DeformConv", Deformable)
    monkeypatch.setattr(resnet, "ModulatedDeformConv", Deformable)
    backbone.NAME = name.replace("_ws", "")
    theirs = standardize(build_backbone(cfg, ShapeSpec(channels=3)))

    parameters, expected = (
        [(n, p.shape, p.requires_grad) for n, p in each.named_parameters()]
        for each in (ours, theirs)
    )
    assert parameters == expected  # in this order, by which optimizers save their state
    assert sum(isinstance(m, WSDeformConv) for m in ours.modules()) == 6 + 3
    for parameter, tensor in ours.named_parameters():
        if "conv2_offset" in parameter:
            assert not tensor.any()
            nn.init.normal_(tensor, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 96)
    outputs = [list(each(x).values()) for each in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    for values in outputs:
        sum(value.square().sum() for value in values).backward()
    grads = [[p.grad for p in each.parameters() if p.requires_grad] for each in (ours, theirs)]
    assert all(grad.any() for grad in grads[0])
    torch.testing.assert_close(*grads, rtol=0, atol=0)
