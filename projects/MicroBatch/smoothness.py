#!/usr/bin/env python3
"""How fast the loss and its gradient change along the direction of training, with and without
Weight Standardization.

    python projects/MicroBatch/smoothness.py --output output/micro_batch

At 10 moments of a training of the classifier, the weights of the convolutions are moved against the
gradient of the mean loss of 4 batches, as by Santurkar et al. (arXiv 1805.11604). Measured are the
range of the loss, the change of the gradient, and that change divided by the distance ("effective
beta-smoothness", a lower bound of the gradient's Lipschitz constant), for two kinds of moves:

- "raw": by 1/2 to 4 learning rates in the weights themselves, as the optimizer does. But a
  normalized network computes the same with weights c times as large, while its gradients become
  1/c and its smoothness 1/c^2 of what they were: raw numbers also compare weight scales.
- "relative": by fixed distances in u = w / |w|, where |w| is the norm of each convolution's weight
  before the move. This does not depend on the scale of the weights.

The shares are those of the two parts that Weight Standardization removes from the squared gradient
of the weight that a convolution uses (arXiv 1903.10520, its inequality of Lipschitz constants): the
part along the mean of each filter and the part along the centered filter.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from classifier import Batch, batches, fit, load
from experiment import Job, Preset, command
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from gnws_d2.layers import StandardizedConv

NORMS = ("BN", "BN+WS", "GN", "GN+WS", "BCN", "BCN+WS")
EXPERIMENTS = {"smoothness": Preset(images=640, lrs=(0.1,), norms=NORMS, batches=(2,))}
MOMENTS = 10
BATCHES = 4
RATES = (0.5, 1.0, 2.0, 4.0)  # raw distances, in learning rates
DISTANCES = (0.005, 0.01, 0.02)  # relative, over all convolutions together

Tensors = Sequence[torch.Tensor]
Loss = Callable[[Tensors], torch.Tensor]


def norm(tensors: Tensors) -> float:
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()


def smoothness_along_gradient(
    loss: Loss, weights: Tensors, scales: Sequence[float], distances: Sequence[float]
) -> dict[str, float]:
    """Move ``weights`` against the gradient of ``loss`` by each distance.

    Gradients and distances are those of u = weight / scale: the gradient in u is scale times that
    in the weight, and a move by d in u is one by scale times d in the weight.

    Returns:
        The loss, its range (largest less smallest), the norm of the gradient, the largest norm of
        its change, and that of its change divided by the distance (``beta``).
    """

    def evaluate(at: Tensors) -> tuple[float, Tensors]:
        at = [weight.detach().requires_grad_() for weight in at]
        value = loss(at)
        gradients = torch.autograd.grad(value, at)
        return value.item(), [s * g for s, g in zip(scales, gradients, strict=True)]

    start, direction = evaluate(weights)
    length = norm(direction)
    losses, changes = [start], []
    for distance in distances:
        step = distance / length
        parts = zip(weights, scales, direction, strict=True)
        value, gradient = evaluate([w.detach() - step * scale * g for w, scale, g in parts])
        losses.append(value)
        changes.append(norm([b - a for a, b in zip(direction, gradient, strict=True)]))
    return {
        "loss": start,
        "loss_range": max(losses) - min(losses),
        "gradient": length,
        "gradient_change": max(changes),
        "beta": max(change / d for change, d in zip(changes, distances, strict=True)),
    }


def removed_shares(weight: torch.Tensor, gradient: torch.Tensor) -> tuple[float, float, float]:
    """The parts of a squared gradient that standardization removes, along the mean of each filter
    and along the centered filter, and the whole. Both tensors are (C_out, C_in, kh, kw)."""
    w, g = weight.flatten(1), gradient.flatten(1)
    centered = w - w.mean(1, keepdim=True)
    along_mean = g.sum(1).square() / w.shape[1]
    along_filter = (g * centered).sum(1).square() / centered.square().sum(1).clamp(min=1e-12)
    return along_mean.sum().item(), along_filter.sum().item(), g.square().sum().item()


def loss_and_weights(model: nn.Module, seen: Sequence[Batch]) -> tuple[Loss, Tensors]:
    """The mean loss over batches as a function of the weights of the convolutions, and those
    weights. The loss leaves ``model`` as it is."""
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    names = [f"{name}.weight" for name in convs]

    def loss(weights: Tensors) -> torch.Tensor:
        losses = []
        for images, labels in seen:
            # A forward in training changes running statistics: here those of a copy.
            state = {name: buffer.clone() for name, buffer in model.named_buffers()}
            state.update(zip(names, weights, strict=True))
            losses.append(F.cross_entropy(functional_call(model, state, images), labels))
        return torch.stack(losses).mean()

    return loss, [model.get_parameter(name) for name in names]


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that computes the same, but whose convolutions are plain, with the
    weights that those of ``model`` use."""
    plain = copy.deepcopy(model)
    for conv in plain.modules():
        if isinstance(conv, StandardizedConv):
            conv.weight = nn.Parameter(conv.standardized_weight().detach())
            conv.__class__ = nn.Conv2d
    return plain


def observe_model(model: nn.Module, seen: Sequence[Batch], lr: float) -> dict[str, float]:
    """Measure a model in training on batches; the model stays as it is."""
    loss, weights = loss_and_weights(model, seen)
    gradient = norm(torch.autograd.grad(loss(weights), weights))
    steps = [rate * lr * gradient for rate in RATES]
    raw = smoothness_along_gradient(loss, weights, [1.0] * len(weights), steps)
    norms = [weight.norm().item() for weight in weights]
    relative = smoothness_along_gradient(loss, weights, norms, DISTANCES)

    loss, used = loss_and_weights(with_plain_convolutions(model), seen)
    gradients = torch.autograd.grad(loss(used), used)
    shares = [removed_shares(w.detach(), g) for w, g in zip(used, gradients, strict=True)]
    along_mean, along_filter, whole = (sum(part) for part in zip(*shares, strict=True))
    return {
        **{f"raw_{name}": value for name, value in raw.items()},
        **{f"relative_{name}": value for name, value in relative.items()},
        "weight_norm": norm(weights),
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
