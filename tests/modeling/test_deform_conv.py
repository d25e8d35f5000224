"""Deformable convolutions and blocks, with Detectron2's compiled part and without it."""

import copy

import pytest
import torch
from detectron2 import layers as detectron2_layers
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import resnet
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock, build_resnet_backbone
from torch import nn
from torchvision.ops import DeformConv2d

from gnws_d2 import load_config, standardize
from gnws_d2.layers import StandardizedConv, fold, standardize_weight
from gnws_d2.layers.convert import make_standardized
from gnws_d2.modeling.deform_conv import DeformConv, WSDeformConv
from gnws_d2.modeling.standardize import _CLASSES

compiled = issubclass(detectron2_layers.DeformConv, nn.Module)
CLASSES = [DeformConv]
if compiled:
    CLASSES += [detectron2_layers.DeformConv, detectron2_layers.ModulatedDeformConv]


def inputs(modulated: bool = True) -> list[torch.Tensor]:
    """x, offset and, if modulated, mask, for a 3x3 kernel of stride 2 and two offset groups."""
    torch.manual_seed(1)
    sizes = [(2, 4, 7, 9), (2, 36, 4, 5), (2, 18, 4, 5)][: 2 + modulated]
    return [torch.randn(size, dtype=torch.float64) for size in sizes]


def build(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
    conv = cls(4, 6, **options, deformable_groups=2, norm=nn.GroupNorm(2, 6)).double()
    nn.init.normal_(conv.norm.weight)
    return conv


@pytest.mark.parametrize(
    ("cls", "standardized"), [(DeformConv, False), *((cls, True) for cls in CLASSES)]
)
def test_convolves_as_torchvision_does(cls, standardized):
    conv = build(cls)
    if standardized:
        assert make_standardized(conv, _CLASSES) == "" and type(conv) is WSDeformConv
    x, offset, *mask = inputs(modulated=cls is not detectron2_layers.DeformConv)
    reference = DeformConv2d(4, 6, 3, stride=2, padding=1, bias=False).double()
    weight = standardize_weight(conv.weight) if standardized else conv.weight
    reference.weight = nn.Parameter(weight.detach())
    torch.testing.assert_close(conv(x, offset, *mask), conv.norm(reference(x, offset, *mask)))
    assert conv(x[:0], offset[:0], *(m[:0] for m in mask)).shape == (0, 6, 4, 5)
    assert "in_channels=4, out_channels=6" in repr(conv)


def test_the_gradient_of_the_standardized_weight():
    conv = build(WSDeformConv)
    x, offset, mask = (tensor.requires_grad_() for tensor in inputs())

    def convolved(x, offset, mask, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x, offset, mask))

    assert torch.autograd.gradcheck(convolved, (x, offset, mask, conv.weight), atol=1e-4)


@pytest.mark.parametrize("cls", [*CLASSES, WSDeformConv])
def test_fold_gives_back_the_class_and_the_numbers(cls):
    conv = build(cls)
    if not isinstance(conv, StandardizedConv):
        make_standardized(conv, _CLASSES)
    folded = fold(nn.Sequential(conv))[0]
    assert type(folded) is (DeformConv if cls is WSDeformConv else cls)
    torch.testing.assert_close(folded.weight.data, standardize_weight(conv.weight).detach())


@pytest.mark.parametrize("modulated", [False, True])
def test_a_block_of_detectron2_has_its_names_and_takes_gradients(modulated):
    cfg = load_config("Digits/mask_rcnn_R_50_FPN_deform_gn_ws.yaml")
    cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    block = backbone.res4[0]
    assert type(block) is DeformBottleneckBlock
    assert {name.split(".")[0] for name in block.state_dict()} == {
        *("shortcut", "conv1", "conv2_offset", "conv2", "conv3")
    }
    assert [name for name in block.state_dict() if name.startswith("conv2.")] == [
        *("conv2.weight", "conv2.norm.weight", "conv2.norm.bias")
    ]
    plain = copy.deepcopy(backbone)
    standardize(backbone, ["backbone"])
    assert type(block.conv2) is WSDeformConv
    assert not isinstance(block.conv2_offset, StandardizedConv)
    plain.load_state_dict(backbone.state_dict(), strict=True)

    torch.manual_seed(0)
    nn.init.normal_(block.conv2_offset.weight, std=0.1)
    x = torch.randn(2, block.conv1.in_channels, 6, 8)
    torch.testing.assert_close(block(x), by_hand(block, x))
    block(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def by_hand(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    inner = block.conv1(x).relu()
    offset = block.conv2_offset(inner)
    offset, *mask = offset.split(18, dim=1)
    conv = block.conv2
    deform = DeformConv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False)
    deform.weight = nn.Parameter(standardize_weight(conv.weight).detach())
    inner = conv.norm(deform(inner, offset, *(m.sigmoid() for m in mask))).relu()
    return (block.conv3(inner) + block.shortcut(x)).relu()


def test_detectron2_keeps_its_own_classes_where_it_has_them():
    expected = detectron2_layers.DeformConv if compiled else DeformConv
    assert resnet.DeformConv is expected
