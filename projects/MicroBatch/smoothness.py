#!/usr/bin/env python3
"""How fast loss and gradient change along the direction of training, with and without Weight
Standardization.

    python projects/MicroBatch/smoothness.py --output output/micro_batch

At 10 moments of a training of the classifier, the convolutions' weights are moved against the
gradient of the mean loss of 4 batches of training, as Santurkar et al. do it (arXiv 1805.11604):
how much the loss varies on the way, how far the gradient goes from where it was, and that distance
divided by the way ("effective beta-smoothness", a lower bound of the gradient's Lipschitz
constant). Twice:

- "raw": by 1/2 to 4 learning rates (that of the job) in the weights themselves: what the optimizer
  meets. But a normalized network computes the same with weights c times as large, its gradients
  are then 1/c and its smoothness 1/c^2 of what they were: raw numbers also compare weight scales.
- "relative": by fixed distances in u = w / |w|, with |w| the norm of each convolution's weight
  before the move. This does not change when weights are scaled, and is fair between networks.

Beside them, the two parts that Weight Standardization takes out of the gradient of the weight that
the convolution uses (arXiv 1903.10520, its inequality of Lipschitz constants): that along the mean
of a filter and that along the filter, as shares of its square.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from classifier import Batch, batches, fit, load
from experiment import Job, Preset
from run import command
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from gnws_d2.layers import StandardizedConv

NORMS = ("BN", "BN+WS", "GN", "GN+WS", "BCN", "BCN+WS")
EXPERIMENTS = {
    "smoothness": Preset(images=640, reference_lr=0.1, seeds=3, norms=NORMS, batches=(2,))
}
MOMENTS = 10
BATCHES = 4
RATES = (0.5, 1.0, 2.0, 4.0)  # raw steps, in learning rates
DISTANCES = (0.005, 0.01, 0.02)  # relative, over all convolutions together

Loss = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Smoothness:
    """What changes on the way.

    Attributes:
        loss: at its beginning.
        loss_range: largest less smallest loss at the beginning and the points of the way.
        gradient: its norm at the beginning.
        gradient_change: largest norm of its change.
        beta: largest norm of its change divided by the distance.
    """

    loss: float
    loss_range: float
    gradient: float
    gradient_change: float
    beta: float


def smoothness_along_gradient(
    loss: Loss, weights: Sequence[torch.Tensor], scales: Sequence[float], distances: Sequence[float]
) -> Smoothness:
    """Move ``weights`` against the gradient of ``loss`` by each distance, and put them back. Where
    the gradient is 0 there is no way to go, and nothing changes.

    Ways, gradients and distances are those of u = weight / scale: the gradient in u is scale times
    that in the weight, and a way d in u is scale times d in the weight.
    """
    start = [weight.detach().clone() for weight in weights]
    first, direction = _loss_and_gradient(loss, weights, scales)
    length = _norm(direction)
    if not length:
        return Smoothness(first, 0, 0, 0, 0)
    losses, changes = [first], [0.0]
    for distance in distances:
        with torch.no_grad():
            for weight, scale, begin, along in zip(weights, scales, start, direction, strict=True):
                weight.copy_(begin - distance / length * scale * along)
        value, gradient = _loss_and_gradient(loss, weights, scales)
        losses.append(value)
        changes.append(_norm([b - a for a, b in zip(direction, gradient, strict=True)]))
    with torch.no_grad():
        for weight, begin in zip(weights, start, strict=True):
            weight.copy_(begin)
    return Smoothness(
        loss=first,
        loss_range=max(losses) - min(losses),
        gradient=length,
        gradient_change=max(changes),
        beta=max(c / d for c, d in zip(changes[1:], distances, strict=True)),
    )


def _loss_and_gradient(
    loss: Loss, weights: Sequence[torch.Tensor], scales: Sequence[float]
) -> tuple[float, list[torch.Tensor]]:
    value = loss()
    gradients = torch.autograd.grad(value, list(weights))
    return value.item(), [s * g for s, g in zip(scales, gradients, strict=True)]


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return torch.stack([t.norm() for t in tensors]).norm().item()


def removed_shares(weight: torch.Tensor, gradient: torch.Tensor) -> tuple[float, float, float]:
    """What standardization takes out of a gradient: its square along the mean of each filter, along
    the centered filter, and whole. Both tensors are (C_out, C_in, kh, kw)."""
    w, g = weight.flatten(1), gradient.flatten(1)
    centered = w - w.mean(1, keepdim=True)
    along_mean = g.sum(1).square() / w.shape[1]
    along_filter = (g * centered).sum(1).square() / centered.square().sum(1).clamp(min=1e-12)
    return along_mean.sum().item(), along_filter.sum().item(), g.square().sum().item()


@contextmanager
def used_weights(convs: Sequence[nn.Conv2d]) -> Iterator[list[torch.Tensor]]:
    """The weights that convolutions compute with, standardized where they are, as tensors that a
    gradient can be taken of."""
    used = []
    standardized = [conv for conv in convs if isinstance(conv, StandardizedConv)]
    for conv in convs:
        used.append(conv.standardized_weight() if conv in standardized else conv.weight)
    for conv, weight in zip(convs, used, strict=True):
        if conv in standardized:
            # Past its own, which standardizes and convolves in one function.
            conv._conv_forward = lambda x, _, bias, conv=conv, weight=weight: (
                nn.Conv2d._conv_forward(conv, x, weight, bias)
            )
    try:
        yield used
    finally:
        for conv in standardized:
            del conv._conv_forward


def observe_model(model: nn.Module, seen: Sequence[Batch], lr: float) -> dict[str, float]:
    """Measure a model in training on batches; ``model`` itself is left as it is."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    weights = [conv.weight for conv in convs]

    def batch_loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # A forward moves running statistics: those of copies.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return F.cross_entropy(functional_call(model, buffers, (images,)), labels)

    def loss() -> torch.Tensor:
        return torch.stack([batch_loss(*batch) for batch in seen]).mean()

    ones, norms = [1.0] * len(weights), [weight.norm().item() for weight in weights]
    gradient = _norm(torch.autograd.grad(loss(), weights))
    raw = smoothness_along_gradient(loss, weights, ones, [r * lr * gradient for r in RATES])
    relative = smoothness_along_gradient(loss, weights, norms, DISTANCES)
    with used_weights(convs) as used:
        gradients = torch.autograd.grad(loss(), used)
    shares = [removed_shares(w.detach(), g) for w, g in zip(used, gradients, strict=True)]
    along_mean, along_filter, whole = (sum(part) for part in zip(*shares, strict=True))
    return {
        **{f"raw_{name}": value for name, value in asdict(raw).items()},
        **{f"relative_{name}": value for name, value in asdict(relative).items()},
        "weight_norm": _norm(weights),
        "share_along_mean": along_mean / whole,
        "share_along_filter": along_filter / whole,
    }


def train(job: Job) -> list[dict[str, Any]]:
    rows = []
    moments = {round(i * job.steps / MOMENTS) for i in range(MOMENTS)}
    seen = list(itertools.islice(batches(job, load("train")), BATCHES))

    def observe(step: int, model: nn.Module) -> None:
        if step in moments:
            rows.append({"images_seen": step * job.batch, **observe_model(model, seen, job.lr)})

    fit(job, observe)
    return rows


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS)
