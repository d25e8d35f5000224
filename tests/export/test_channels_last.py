"""Why a predictor does not choose channels_last on a CPU: docs/export.md has these numbers."""

import pytest
import torch


def relative_error(mean, memory_format):
    """Of torch's GroupNorm in float32, against the formula in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 256, 100, 132, generator=generator) + mean
    groups = x.double().view(32, -1)
    variance, center = torch.var_mean(groups, 1, unbiased=False, keepdim=True)
    true = ((groups - center) / (variance + 1e-5).sqrt()).view_as(x)
    found = torch.nn.functional.group_norm(x.contiguous(memory_format=memory_format), 32)
    return ((found - true).norm() / true.norm()).item()


@pytest.mark.parametrize(
    ("mean", "contiguous", "channels_last"),
    [(100, 5e-6, 4e-3), (1000, 3e-5, 80), (10000, 5e-4, 0.9)],
)
def test_group_norm_in_channels_last_loses_precision(mean, contiguous, channels_last):
    assert relative_error(mean, torch.contiguous_format) < 2 * contiguous
    assert relative_error(mean, torch.channels_last) > channels_last / 2
