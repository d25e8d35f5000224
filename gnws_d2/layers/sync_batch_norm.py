"""Batch normalization by the statistics of all processes, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` that in training normalizes by the statistics of all processes.

    The result is that of one process with all samples, whatever the number and size of each
    process's images; a process with an empty batch takes part. Unlike
    ``torch.nn.SyncBatchNorm`` it runs on the CPU as well. In evaluation, and without
    ``torch.distributed``, it is its parent. Takes and returns (N, C, H, W), N = 0 included.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: the weight of the batch's statistics in the running ones.
    """

    momentum: float

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (self.training and is_distributed()):
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims, per_channel = (0, 2, 3), (1, -1, 1, 1)
        count = x.new_full((1,), x.numel() // x.shape[1])
        # Differentiable: a process's loss has a gradient at the images of the others.
        sums = all_reduce(torch.cat([x.sum(dims), count]))
        total = sums[-1].clamp(min=1)
        mean = sums[:-1] / total
        # Around the mean, in a second exchange: the difference of two large numbers that
        # E[x^2] - E[x]^2 is has no correct digit where the mean is far from 0.
        centered = x - mean.view(per_channel)
        var = all_reduce(centered.square().sum(dims)) / total
        self._update(mean.detach(), var.detach(), count=sums[-1].detach())
        out = centered * (self.weight * (var + self.eps).rsqrt()).view(per_channel)
        return (out + self.bias.view(per_channel)).to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        speed = self.momentum * count.clamp(max=1)  # where no process has a sample, no change
        unbiased = var * count / (count - 1).clamp(min=1)
        self.running_mean += (speed * (mean - self.running_mean)).to(self.running_mean.dtype)
        self.running_var += (speed * (unbiased - self.running_var)).to(self.running_var.dtype)
        self.num_batches_tracked += 1


def is_distributed() -> bool:
    """Whether there are other processes to exchange statistics with."""
    return dist.is_initialized() and dist.get_world_size() > 1
