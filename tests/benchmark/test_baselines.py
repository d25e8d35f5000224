"""The formulas that this package is compared with are those that they are named after."""

import numpy as np
import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn
from variants import plain_formula, timm_formula, use_formula

from gnws_d2.layers import WSConv2d

WEIGHT = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(weight: torch.Tensor, ddof: int, inside: float, outside: float) -> np.ndarray:
    """With the deviation's degrees of freedom, and epsilon inside and outside the root."""
    filters = weight.numpy()
    stds = [np.sqrt(each.var(ddof=ddof) + inside) + outside for each in filters]
    return np.stack([(each - each.mean()) / s for each, s in zip(filters, stds, strict=True)])


@pytest.mark.parametrize(
    ("formula", "constants"), [(plain_formula, (1, 0, 1e-5)), (timm_formula, (0, 1e-6, 0))]
)
def test_a_model_computes_a_formula_by_hand_and_its_gradient(formula, constants):
    weight = WEIGHT * 1e-4 + 0.3  # where epsilon counts
    options = {"norm": nn.GroupNorm(2, 6), "activation": nn.ReLU(), "bias": False, "stride": 2}
    model = nn.Sequential(WSConv2d(3, 6, 3, **options)).double()
    plain = Conv2d(3, 6, 3, **options).double()
    model[0].weight.data.copy_(weight)
    plain.weight.data.copy_(torch.from_numpy(by_hand(weight, *constants)))
    use_formula(model, formula)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), plain(x), rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(formula, WEIGHT[:2, :2, :2].clone().requires_grad_())
