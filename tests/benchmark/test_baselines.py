"""The formulas that this package is compared with are those that they are named after."""

import numpy as np
import pytest
import torch
from baselines import (
    FormulaConv2d,
    plain_formula,
    plain_reference,
    timm_formula,
    timm_reference,
    use_formula,
)
from detectron2.layers import Conv2d
from torch import nn

from gnws_d2.layers import WSConv2d

WEIGHT = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(weight: torch.Tensor, ddof: int, inside: float, outside: float) -> np.ndarray:
    out = np.empty(weight.shape)
    for i, filter_ in enumerate(weight.numpy()):
        out[i] = (filter_ - filter_.mean()) / (np.sqrt(filter_.var(ddof=ddof) + inside) + outside)
    return out


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_values(scale):
    weight = WEIGHT * scale + 0.3
    plain = by_hand(weight, ddof=1, inside=0, outside=1e-5)
    timm = by_hand(weight, ddof=0, inside=1e-6, outside=0)
    for formula in (plain_formula, plain_reference):
        np.testing.assert_allclose(formula(weight), plain, rtol=1e-9)
    for formula in (timm_formula, timm_reference):
        np.testing.assert_allclose(formula(weight), timm, rtol=1e-9)


@pytest.mark.parametrize(
    ("formula", "reference"), [(plain_formula, plain_reference), (timm_formula, timm_reference)]
)
def test_the_gradients(formula, reference):
    weight = WEIGHT.clone().requires_grad_()
    assert torch.autograd.gradcheck(reference, weight)
    slope = torch.randn_like(weight)
    (ours,) = torch.autograd.grad(formula(weight), weight, slope)
    (true,) = torch.autograd.grad(reference(weight), weight, slope)
    torch.testing.assert_close(ours, true)


def test_a_model_is_given_a_formula():
    norm = nn.GroupNorm(2, 6)
    standardized = WSConv2d(3, 6, 3, norm=norm, activation=nn.ReLU(), bias=False, stride=2)
    plain = Conv2d(3, 6, 3, norm=norm, activation=nn.ReLU(), bias=False, stride=2)
    model = nn.Sequential(standardized).double()
    model[0].weight.data.copy_(WEIGHT)
    plain.double().weight.data.copy_(timm_reference(WEIGHT))
    use_formula(model, timm_formula)
    assert type(model[0]) is FormulaConv2d
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x))
