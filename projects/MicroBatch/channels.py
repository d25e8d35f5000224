#!/usr/bin/env python3
"""The statistics of a trained classifier's channels, which BCN is designed to improve.

    python projects/MicroBatch/channels.py --output output/micro_batch

Near elimination singularities, where channels are never or always positive before a ReLU, a network
is close to one with fewer channels or fewer layers. BN keeps each channel at mean 0 and variance 1
over the data, far from both. GN normalizes groups of channels, so that a channel may stay small or
off-centre beside the others of its group (Qiao et al., arXiv 1911.09738).

Measured for each channel, over the held-out scans in evaluation mode:

- before each ReLU: |mean| / standard deviation, and the share of values that are positive;
- after each norm, without its affine part: the distance of (mean, standard deviation) from (0, 1),
  which is also the Wasserstein distance between the two normal distributions;
- before each norm: the share of the variance that lies between images, not within them. With one
  image per step, BN normalizes by the statistics of that image and removes this share.
"""

from __future__ import annotations

from typing import Any

import torch
from classifier import fit, load
from experiment import Job, Preset, command
from torch import nn

EXPERIMENTS = {"channels": Preset(images=640, lrs=(0.1,), batches=(2,))}
RARE = 0.01  # a channel with a smaller share of positive values counts as never positive
QUANTILES = torch.linspace(0, 1, 21, dtype=torch.float64)


def mean_and_std(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) standard deviation of each channel of (N, C, H, W), in float64."""
    values = x.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1, correction=0)


def before_affine(norm: nn.Module, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation that each channel of a norm's output would have without the
    affine part, which has a scale and an offset for each channel, or in BCN for each group."""
    mean, std = mean_and_std(output)
    repeats = len(mean) // norm.weight.numel()
    weight = norm.weight.double().flatten().repeat_interleave(repeats)
    bias = norm.bias.double().flatten().repeat_interleave(repeats)
    return (mean - bias) / weight, std / weight.abs()


def between_images(x: torch.Tensor) -> torch.Tensor:
    """The variance of the images' means, as a share of each channel's variance in (N, C, H, W)."""
    values = x.double()
    of_means = values.mean((2, 3)).var(0, correction=0)
    return of_means / values.var((0, 2, 3), correction=0).clamp(min=1e-24)


@torch.no_grad()
def measure(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run ``model`` on ``images`` in evaluation mode.

    Returns:
        Each measure of the module's docstring over all layers: (number of channels,).
    """
    ratios, positive, distances, between = [], [], [], []

    def before_relu(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        mean, std = mean_and_std(inputs[0])
        ratios.append(mean.abs() / std.clamp(min=1e-12))
        positive.append((inputs[0] > 0).double().mean((0, 2, 3)))

    def after_norm(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        between.append(between_images(inputs[0]))
        mean, std = before_affine(module, output)
        distances.append(torch.hypot(mean, std - 1))

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            hooks.append(module.register_forward_pre_hook(before_relu))
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and not name.endswith(
            ".bn"
        ):  # a part of BCN
            hooks.append(module.register_forward_hook(after_norm))
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    names = ("mean_over_std", "positive", "distance", "between")
    found = map(torch.cat, (ratios, positive, distances, between))
    return dict(zip(names, found, strict=True))


def summary(channels: dict[str, torch.Tensor]) -> dict[str, float]:
    """The shares of channels that are (almost) never and always positive, and the quantiles of each
    measure."""
    row = {
        "never_positive": (channels["positive"] < RARE).double().mean().item(),
        "always_positive": (channels["positive"] > 1 - RARE).double().mean().item(),
    }
    for name, values in channels.items():
        for quantile, value in zip(QUANTILES, values.quantile(QUANTILES), strict=True):
            row[f"{name}_{100 * quantile:.0f}"] = value.item()
    return row


def train(job: Job) -> list[dict[str, Any]]:
    return [summary(measure(fit(job), load("val")[0]))]


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS)
