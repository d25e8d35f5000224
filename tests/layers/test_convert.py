"""Models that were built without this package: torchvision's, and small ones with corner cases."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from gnws_d2.layers import StandardizedConv, WSConv2d, convert, fold

# Of each model: its constructor, an input, and how many convolutions and norms change or stay.
MODELS = {
    "resnet18": (torchvision.models.resnet18, (2, 3, 64, 64), 40, 0),
    "deeplabv3": (
        lambda: torchvision.models.segmentation.deeplabv3_resnet50(weights_backbone=None),
        *((2, 3, 64, 64), 120, 1),  # the last convolution predicts
    ),
    "r3d_18": (torchvision.models.video.r3d_18, (1, 3, 4, 32, 32), 40, 0),
}


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found = model(x)
    return found["out"] if isinstance(found, dict) else found


@pytest.mark.parametrize("name", MODELS)
def test_torchvision(name):
    build, shape, changed, unchanged = MODELS[name]
    torch.manual_seed(0)
    original = build()
    model, report = convert(original)
    assert str(report).startswith(f"{changed} changed, {unchanged} not\n"), str(report)
    assert {c.reason for c in report.changes if not c.became} <= {"no norm follows it"}
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in original.modules())

    x = torch.randn(shape)
    output(model, x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    # Parameters keep their names and values; the statistics of BatchNorm are gone.
    weights = dict(original.named_parameters())
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())

    again, _ = convert(build())
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = output(model.eval(), x)
        assert torch.equal(output(again.eval(), x), expected)
        folded = fold(model)
        assert torch.equal(output(folded, x), expected)
    assert {type(m) for m in folded.modules()} <= {type(m) for m in original.modules()} | {
        nn.GroupNorm
    }


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Odd(nn.Module):
    """One of each thing that stays as it is, and of some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3)
        self.bn = nn.BatchNorm2d(48)
        self.depthwise = nn.Conv2d(48, 48, 1, groups=48)
        self.bn2 = nn.BatchNorm2d(48)
        self.other_width = nn.Conv2d(48, 8, 1)
        self.bn3 = nn.BatchNorm2d(37, affine=False)
        self.gn = nn.GroupNorm(2, 8)
        self.frozen = torchvision.ops.FrozenBatchNorm2d(8)
        self.instance = nn.InstanceNorm2d(8)
        self.linear = nn.Linear(8, 16)
        self.bn_of_linear = nn.BatchNorm1d(16)
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3))
        self.bn4 = nn.BatchNorm1d(4)
        self.doubled = Doubled(3, 8, 3)
        self.bn5 = nn.BatchNorm2d(8)


def test_the_report_gives_reasons():
    model, report = convert(Odd().eval())
    outcome = {c.name: c.became or c.reason for c in report.changes}
    assert outcome == {
        "conv": "WSConv2d",
        "bn": "GroupNorm",
        "depthwise": "its fan-in is 1, and one number has no standard deviation",
        "bn2": "GroupNorm",
        "other_width": "no norm follows it",
        "bn3": "GroupNorm",
        "gn": "it is GroupNorm",
        "frozen": "it is frozen",
        "instance": "it is not a BatchNorm",
        "bn_of_linear": "no convolution precedes it, and a group of one value has no deviation",
        "parametrized": "its weight is parametrized",
        "bn4": "GroupNorm",
        "doubled": "Doubled has its own forward",
        "bn5": "GroupNorm",
    }
    assert (model.bn.num_groups, model.bn2.num_groups, model.bn3.num_groups) == (24, 24, 1)
    assert type(model.doubled) is Doubled
    assert model.bn.eps == 1e-5 and not model.bn3.affine and not model.bn.training
    assert "depthwise Conv2d stays: its fan-in is 1" in str(report)


def test_in_place_and_one_thing_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    same, _ = convert(model, group_norm=False, inplace=True)
    assert same is model and type(model[0]) is WSConv2d and type(model[1]) is nn.BatchNorm2d
    other, report = convert(model, standardize=False)
    assert type(other[1]) is nn.GroupNorm and type(model[1]) is nn.BatchNorm2d
    assert [c.name for c in report.changes] == ["1"]
    _, again = convert(model)
    assert [c.reason for c in again.changes if not c.became] == ["it is standardized"]


def test_frozen_parameters_stay_frozen_and_shared_ones_shared():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).requires_grad_(False)
    bn, weight = model[1], model[1].weight
    convert(model, inplace=True)
    assert model[1].weight is weight and not weight.requires_grad and bn is not model[1]
    assert isinstance(copy.deepcopy(model)[0], StandardizedConv)


def test_a_norm_alone_is_refused():
    with pytest.raises(ValueError, match="convert the module that contains it"):
        convert(nn.BatchNorm2d(8))
