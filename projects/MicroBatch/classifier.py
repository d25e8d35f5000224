#!/usr/bin/env python3
"""A small residual network with 1, 2, 4 and 8 images per step, on scikit-learn's digits and on
FashionMNIST, which torchvision downloads into $GNWS_D2_CACHE.

    python projects/MicroBatch/classifier.py --output output/micro_batch
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.solver import WarmupParamScheduler
from experiment import MOVING_SPEED, Job, Preset, command
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from gnws_d2.files import cache_path
from gnws_d2.layers import BatchChannelNorm2d, EstimatedBatchNorm2d, convert
from gnws_d2.projects.digits import load_scans

LR_GRID = (0.05, 0.1, 0.2)
FASHION_LR_GRID = (0.0125, 0.025, *LR_GRID)
EXPERIMENTS = {
    "classifier_lr": Preset(images=2880, lrs=LR_GRID, batches=(2,), seeds=(100,)),
    "classifier": Preset(images=2880),
    "fashion_lr": Preset(images=2400, lrs=FASHION_LR_GRID, batches=(2,), seeds=(100,)),
    "fashion": Preset(images=2400),
}
FASHION_TEST_IMAGES = 2000
GROUP = 8  # the number of channels that GN and BCN normalize together
NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(channels // GROUP, channels),
    "BCN": lambda channels: BatchChannelNorm2d(channels, channels // GROUP, estimate=True),
}

Batch = tuple[torch.Tensor, torch.Tensor]  # images (N, C, H, W), classes (N,)


def build_classifier(norm: str) -> nn.Sequential:
    """The network with one of NORMS. It takes (N, 1, H, W) and returns (N, 10)."""
    layer = NORM_LAYERS[norm.removesuffix("+WS")]

    def block(channels: int, out: int) -> BasicBlock:
        if channels == out:
            return BasicBlock(out, out, norm_layer=layer)
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, 2, bias=False), layer(out))
        return BasicBlock(channels, out, 2, shortcut, norm_layer=layer)

    stem = (nn.Conv2d(1, 32, 3, 1, 1, bias=False), layer(32), nn.ReLU())
    blocks = (block(32, 32), block(32, 64), block(64, 128))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    model = nn.Sequential(*stem, *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if norm.endswith("+WS"):
        convert(model, group_norm=False, inplace=True)
    return model


@functools.cache
def load(split: str, fashion: bool = False) -> Batch:
    """Images and classes. Over "train", the images have mean 0 and variance 1.

    Args:
        split: "train": 1438 scans of 8x8, or 60000 images of FashionMNIST at half their size,
            14x14. "val": 359 other scans, or the first FASHION_TEST_IMAGES test images.
        fashion: FashionMNIST instead of the scans.
    """
    train, (images, labels) = read("train", fashion)[0].numpy(), read(split, fashion)
    return (images - train.mean()) / train.std(), labels


def read(split: str, fashion: bool) -> Batch:
    if not fashion:
        scans = load_scans(split)
        return torch.from_numpy(scans.ink).unsqueeze(1), torch.from_numpy(scans.labels).long()
    from torchvision.datasets import FashionMNIST

    data = FashionMNIST(str(cache_path()), train=split == "train", download=True)
    chosen = slice(None if split == "train" else FASHION_TEST_IMAGES)
    images = data.data[chosen].unsqueeze(1).float() / 255
    return F.avg_pool2d(images, 2), data.targets[chosen]


def batches(job: Job, data: Batch) -> Iterator[Batch]:
    """The batches of a training, epoch after epoch in random order. The order depends on the seed,
    not on the batch."""
    images, labels = data
    rng = np.random.default_rng((job.seed, 1))
    epochs = -(-job.images // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])[: job.images]
    for chosen in order.reshape(job.steps, job.batch):
        yield images[chosen], labels[chosen]


def optimize(model: nn.Module, data: Batch, job: Job) -> None:
    """Train a model to classify.

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
        loss = F.cross_entropy(model(images), labels)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {step} of {job.steps}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def forget_running_statistics(model: nn.Module) -> bool:
    """Let every BN of ``model`` use the statistics of its batch in evaluation too. BCN keeps its
    estimates, which it also uses in training.

    Returns:
        Whether the model has a BN.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    norms = [norm for norm in norms if not isinstance(norm, EstimatedBatchNorm2d)]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    return bool(norms)


@torch.no_grad()
def accuracy(model: nn.Module, data: Batch, batch: int = 512) -> float:
    """Accuracy in percent, in evaluation mode, ``batch`` images at a time."""
    images, labels = data
    found = torch.cat([model.eval()(part).argmax(1) for part in images.split(batch)])
    return 100 * (found == labels).float().mean().item()


def train(job: Job) -> dict[str, Any]:
    torch.manual_seed(job.seed)
    model = build_classifier(job.norm)
    is_fashion = job.experiment.startswith("fashion")
    optimize(model, load("train", is_fashion), job)
    data = load("val", is_fashion)
    scores = {"accuracy": accuracy(model, data)}
    if forget_running_statistics(model):
        scores["accuracy_batch_statistics"] = accuracy(model, data, job.batch)
    return scores


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS, score="accuracy")
