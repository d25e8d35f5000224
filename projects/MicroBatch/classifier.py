#!/usr/bin/env python3
"""A small residual network on scikit-learn's digits, trained with 1, 2, 4 and 8 images per step.

    python projects/MicroBatch/classifier.py --preset small --output output/micro_batch/small

Started again, it runs only what is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.solver import WarmupParamScheduler
from experiment import MOVING_SPEED, Job, Preset, loss_curve
from fvcore.common.param_scheduler import CosineParamScheduler
from run import command
from torch import nn
from torch.nn import functional as F

from gnws_d2.data.digits.scans import load_scans
from gnws_d2.layers import BatchChannelNorm2d, EstimatedBatchNorm2d, convert

PRESETS = {
    "small": Preset(images=640, reference_lr=0.1, seeds=3),
    "full": Preset(images=14400, reference_lr=0.1, seeds=10),
}
GROUP = 8  # channels that GN and BCN normalize together
NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    # Untrained, as there is nothing to take statistics from: the network has no normalization.
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(channels // GROUP, channels),
    "BCN": lambda channels: BatchChannelNorm2d(channels, channels // GROUP, estimate=True),
}
CURVE_POINTS = 20

Batch = tuple[torch.Tensor, torch.Tensor]  # images (N, 1, 8, 8), classes (N,)


class Block(nn.Module):
    """A basic residual block, with a convolution for its shortcut where ``stride`` is 2."""

    def __init__(
        self, channels: int, out: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = norm(out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = norm(out)
        self.shortcut = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, norm(out))
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x))


def build_classifier(norm: str) -> nn.Sequential:
    """The network with a norm of NORMS; takes (N, 1, 8, 8), returns (N, 10)."""
    layer = NORM_LAYERS[norm.removesuffix("+WS")]
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1, bias=False),
        layer(32),
        nn.ReLU(),
        Block(32, 32, 1, layer),
        Block(32, 64, 2, layer),
        Block(64, 128, 2, layer),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if norm.endswith("+WS"):
        convert(model, group_norm=False, inplace=True)
    return model


@functools.cache
def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The scans of "train" (1438) or "val" (359, none of them in train): (N, 1, 8, 8) of mean 0
    and variance 1 over train, and their classes (N,)."""
    mean, std = (f(load_scans("train").ink) for f in (np.mean, np.std))
    scans = load_scans(split)
    images = torch.from_numpy((scans.ink - mean) / std).float().unsqueeze(1)
    return images, torch.from_numpy(scans.labels).long()


def batches(job: Job) -> Iterator[Batch]:
    """The images of a training, epoch after epoch in random order. The order is that of the seed,
    whatever the batch."""
    images, labels = load("train")
    rng = np.random.default_rng((job.seed, 1))
    epochs = -(-job.images // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])[: job.images]
    for chosen in order.reshape(job.steps, job.batch):
        yield images[chosen], labels[chosen]


def fit(
    job: Job, observe: Callable[[int, nn.Module], None] = lambda *_: None
) -> tuple[nn.Sequential, list[float]]:
    """Train the network of a job.

    Args:
        observe: called before each step with its number and the model.

    Returns:
        The model, and the loss of each step.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    torch.manual_seed(job.seed)
    model = build_classifier(job.norm).train()
    estimated = [m for m in model.modules() if isinstance(m, EstimatedBatchNorm2d)]
    optimizer = torch.optim.SGD(model.parameters(), job.lr, momentum=0.9, weight_decay=1e-4)
    cosine = CosineParamScheduler(1, 0)
    warm = WarmupParamScheduler(cosine, warmup_factor=0.001, warmup_length=0.05)
    losses = []
    for step, (images, labels) in enumerate(batches(job)):
        optimizer.param_groups[0]["lr"] = job.lr * warm(step / job.steps)
        for layer in estimated:
            layer.moving_speed = MOVING_SPEED * cosine(step / job.steps)
        observe(step, model)
        loss = F.cross_entropy(model(images), labels)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {step} of {job.steps}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def evaluate(model: nn.Module) -> dict[str, float]:
    """Accuracy in percent on the held-out scans, in evaluation mode."""
    images, labels = load("val")
    return {"accuracy": 100 * (model.eval()(images).argmax(1) == labels).float().mean().item()}


def train(job: Job) -> dict[str, Any]:
    model, losses = fit(job)
    return {"rows": [evaluate(model)], "curve": loss_curve(losses, CURVE_POINTS)}


if __name__ == "__main__":
    command(__doc__, train, {"classifier": PRESETS})
