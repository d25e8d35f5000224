"""The statistics of channels against tensors and networks of known ones."""

import pytest
import torch
from channels import before_affine, between_images, mean_and_std, measure, summary
from torch import nn

from gnws_d2.layers import BatchChannelNorm2d


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 8), nn.BatchNorm2d(8), BatchChannelNorm2d(8, 2)], ids=str
)
def test_before_affine_is_the_output_without_it(norm):
    torch.manual_seed(0)
    norm, x = norm.double(), 3 * torch.randn(5, 8, 4, 4, dtype=torch.float64) + 1
    without = mean_and_std(norm(x))
    nn.init.uniform_(norm.weight, -2, -0.5)
    nn.init.normal_(norm.bias)
    for found, expected in zip(before_affine(norm, norm(x)), without, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_network_of_known_channels():
    """Four channels: normal, never positive, always positive, and small beside the others."""
    torch.manual_seed(0)
    x = torch.randn(200, 4, 4, 4, dtype=torch.float64)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), correction=0, keepdim=True)
    x = (x - mean) / std
    aim, spread = torch.tensor([0.0, -9.0, 9.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.25])
    x = x * spread.view(1, -1, 1, 1) + aim.view(1, -1, 1, 1)
    identity = nn.BatchNorm2d(4, eps=1e-12, dtype=torch.float64)  # its estimates are still (0, 1)
    found = measure(nn.Sequential(identity, nn.ReLU()), x)
    assert found["mean_over_std"].tolist() == pytest.approx([0, 9, 9, 0], abs=1e-6)
    assert found["distance"].tolist() == pytest.approx([0, 9, 9, 0.75], abs=1e-6)
    assert found["positive"][1:3].tolist() == [0, 1]
    row = summary(found)
    assert (row["never_positive"], row["always_positive"]) == (0.25, 0.25)
    assert (row["distance_0"], row["distance_100"]) == pytest.approx((0, 9), abs=1e-6)


def test_variance_between_and_within_images():
    """Channel 0 differs between images alone, 1 within them alone, 2 by 3 between and 1 within."""
    between = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    within = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(2, 1, 1, 2)
    x = torch.cat([between, within, 3**0.5 * between + within], dim=1)
    assert between_images(x).tolist() == pytest.approx([1, 0, 0.75])


def test_the_batch_norm_within_bcn_is_no_norm_of_its_own():
    found = measure(nn.Sequential(BatchChannelNorm2d(8, 2), nn.ReLU()), torch.randn(4, 8, 3, 3))
    assert found["distance"].shape == found["positive"].shape == (8,)
