#!/usr/bin/env python3
"""How the channels of a trained classifier are distributed, which BCN is designed to improve.

    python projects/MicroBatch/channels.py --output output/micro_batch

A channel that is never positive before a ReLU is eliminated, and one that always is passes the ReLU
as through the identity: near these the network is close to one with fewer channels or fewer layers,
an elimination singularity. BN keeps every channel at mean 0 and variance 1 over the data, far from
both. GN normalizes groups of channels, so that one channel may stay small or off-centre beside the
others of its group (Qiao et al., arXiv 1911.09738).

Measured over the held-out scans in evaluation mode, channel by channel:

- before each ReLU: |mean| / standard deviation, and the share of values that are positive;
- after each norm, before its affine part: the distance of (mean, standard deviation) from (0, 1),
  sqrt(mean^2 + (std - 1)^2), which is what BN aims at, and the Wasserstein distance between the two
  normal distributions;
- before each norm: the share of a channel's variance that lies between images, not within them.
  With one image per step, batch statistics are those of that image, and BN removes this share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from classifier import fit, load
from experiment import NORMS, Job, Preset
from run import command
from torch import nn

EXPERIMENTS = {"channels": Preset(images=640, reference_lr=0.1, seeds=3, norms=NORMS, batches=(2,))}
NORMALIZATIONS = (nn.BatchNorm2d, nn.GroupNorm)
RARE = 0.01  # share of values below which a channel counts as never positive
QUANTILES = 21


@dataclass(frozen=True)
class Channels:
    """What was measured over all layers of a model, one number a channel: (number of channels,)."""

    mean_over_std: torch.Tensor
    positive: torch.Tensor
    distance: torch.Tensor
    between: torch.Tensor


def mean_and_std(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) standard deviation of each channel of (N, C, H, W), in float64."""
    values = x.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1, correction=0)


def before_affine(norm: nn.Module, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel that ``output`` of a norm would have without its
    affine part, which is a scale and an offset for each channel, or for BCN for each group."""
    mean, std = mean_and_std(output)
    repeats = len(mean) // norm.weight.numel()
    weight = norm.weight.double().flatten().repeat_interleave(repeats)
    bias = norm.bias.double().flatten().repeat_interleave(repeats)
    return (mean - bias) / weight, std / weight.abs()


def between_images(x: torch.Tensor) -> torch.Tensor:
    """The variance of the means of images as a share of the whole, each channel of (N, C, H, W)."""
    values = x.double()
    of_means = values.mean((2, 3)).var(0, correction=0)
    return of_means / values.var((0, 2, 3), correction=0).clamp(min=1e-24)


@torch.no_grad()
def measure(model: nn.Module, images: torch.Tensor) -> Channels:
    """Run ``model`` on ``images`` in evaluation mode, and look at its ReLUs and norms."""
    ratios, shares, distances, between = [], [], [], []

    def before_relu(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        mean, std = mean_and_std(inputs[0])
        ratios.append(mean.abs() / std.clamp(min=1e-12))
        shares.append((inputs[0] > 0).double().mean((0, 2, 3)))

    def after_norm(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        between.append(between_images(inputs[0]))
        mean, std = before_affine(module, output)
        distances.append(torch.hypot(mean, std - 1))

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            hooks.append(module.register_forward_pre_hook(before_relu))
        elif isinstance(module, NORMALIZATIONS) and not name.endswith(".bn"):  # a part of BCN
            hooks.append(module.register_forward_hook(after_norm))
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    return Channels(*map(torch.cat, (ratios, shares, distances, between)))


def summary(channels: Channels) -> dict[str, float]:
    """Shares of channels that are (almost) never and always positive, and the quantiles, from the
    smallest to the largest in steps of 5%, of what was measured."""
    row = {
        "never_positive": (channels.positive < RARE).double().mean().item(),
        "always_positive": (channels.positive > 1 - RARE).double().mean().item(),
    }
    steps = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    for name, values in vars(channels).items():
        for step, value in zip(steps, values.quantile(steps), strict=True):
            row[f"{name}_{100 * step:.0f}"] = value.item()
    return row


def train(job: Job) -> list[dict[str, Any]]:
    return [summary(measure(fit(job), load("val")[0]))]


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS)
