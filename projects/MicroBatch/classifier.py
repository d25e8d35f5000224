#!/usr/bin/env python3
"""A small residual network with 1, 2, 4 and 8 images per step, on scikit-learn's digits and on
FashionMNIST, which torchvision downloads into $GNWS_D2_CACHE.

    python projects/MicroBatch/classifier.py --output output/micro_batch

Started again, it runs only what is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.solver import WarmupParamScheduler
from experiment import MOVING_SPEED, Job, Preset
from fvcore.common.param_scheduler import CosineParamScheduler
from run import command
from torch import nn
from torch.nn import functional as F

from gnws_d2.cache import cache_path
from gnws_d2.data.digits.scans import load_scans
from gnws_d2.layers import BatchChannelNorm2d, EstimatedBatchNorm2d, convert

GRID = Preset(lr_grid=(0.05, 0.1, 0.2), seeds=1, first_seed=100, batches=(2,))
EXPERIMENTS = {
    "classifier_lr": replace(GRID, images=2880),
    "classifier": Preset(images=2880, seeds=3),
    "fashion_lr": replace(GRID, images=2400, lr_grid=(0.0125, 0.025, 0.05, 0.1, 0.2)),
    "fashion": Preset(images=2400, seeds=3),
}
FASHION_TEST_IMAGES = 2000
GROUP = 8  # channels that GN and BCN normalize together
NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(channels // GROUP, channels),
    "BCN": lambda channels: BatchChannelNorm2d(channels, channels // GROUP, estimate=True),
}

Batch = tuple[torch.Tensor, torch.Tensor]  # images (N, 1, H, W), classes (N,)


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
    """The network with a norm of NORMS; takes (N, 1, H, W), returns (N, 10)."""
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
def load(split: str, fashion: bool = False) -> Batch:
    """Images of mean 0 and variance 1 over "train", and their classes: (1438, 1, 8, 8) scans, or
    (60000, 1, 14, 14) of FashionMNIST at half its size.

    Args:
        split: "train", or "val": 359 other scans, the first of FashionMNIST's test images.
    """
    (train, _), (images, labels) = (
        load_fashion(name) if fashion else load_ink(name) for name in ("train", split)
    )
    mean, std = train.numpy().mean(), train.numpy().std()
    return (images - mean) / std, labels


def load_ink(split: str) -> Batch:
    scans = load_scans(split)
    return torch.from_numpy(scans.ink).unsqueeze(1), torch.from_numpy(scans.labels).long()


def load_fashion(split: str) -> Batch:
    from torchvision.datasets import FashionMNIST

    whole = FashionMNIST(str(cache_path()), train=split == "train", download=True)
    chosen = slice(None if split == "train" else FASHION_TEST_IMAGES)
    images = whole.data[chosen].unsqueeze(1).float() / 255
    return F.avg_pool2d(images, 2), whole.targets[chosen]


def batches(job: Job, data: Batch) -> Iterator[Batch]:
    """The images of a training, epoch after epoch in random order. The order is that of the seed,
    whatever the batch."""
    images, labels = data
    rng = np.random.default_rng((job.seed, 1))
    epochs = -(-job.images // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])[: job.images]
    for chosen in order.reshape(job.steps, job.batch):
        yield images[chosen], labels[chosen]


def optimize(
    model: nn.Module,
    data: Batch,
    job: Job,
    observe: Callable[[int, nn.Module], None] = lambda *_: None,
) -> None:
    """Train a model to classify.

    Args:
        observe: called before each step with its number and the model.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    model.train()
    estimated = [m for m in model.modules() if isinstance(m, EstimatedBatchNorm2d)]
    optimizer = torch.optim.SGD(model.parameters(), job.lr, momentum=0.9, weight_decay=1e-4)
    cosine = CosineParamScheduler(1, 0)
    warm = WarmupParamScheduler(cosine, warmup_factor=0.001, warmup_length=0.05)
    for step, (images, labels) in enumerate(batches(job, data)):
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


def forget_running_statistics(model: nn.Module) -> bool:
    """Let every BN of ``model`` normalize by the statistics of its batch in evaluation too; the
    estimates of BCN, its statistics in training, stay.

    Returns:
        Whether there was one.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and not isinstance(module, EstimatedBatchNorm2d)
    ]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    return bool(norms)


@torch.no_grad()
def accuracy(model: nn.Module, data: Batch, batch: int = 512) -> float:
    """In percent, in evaluation mode, ``batch`` images at a time."""
    images, labels = data
    found = torch.cat([model.eval()(part).argmax(1) for part in images.split(batch)])
    return 100 * (found == labels).float().mean().item()


def fit(job: Job, observe: Callable[[int, nn.Module], None] = lambda *_: None) -> nn.Sequential:
    """Train the network of a job; see :func:`optimize`."""
    torch.manual_seed(job.seed)
    model = build_classifier(job.norm)
    optimize(model, load("train", job.experiment.startswith("fashion")), job, observe)
    return model


def train(job: Job) -> list[dict[str, Any]]:
    data = load("val", job.experiment.startswith("fashion"))
    model = fit(job)
    row = {"accuracy": accuracy(model, data)}
    if forget_running_statistics(model):
        row["accuracy_batch_statistics"] = accuracy(model, data, job.batch)
    return [row]


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS, score="accuracy")
