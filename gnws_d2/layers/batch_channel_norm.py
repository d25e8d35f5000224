"""Batch-Channel Normalization (Qiao et al., arXiv 1911.09738; with estimated statistics for
micro-batches, arXiv 1903.10520).

The mathematics and the names in a state dict are those of ``BCNorm`` and ``EstBN`` in the authors'
implementation, https://github.com/joe-siyuan-qiao/Batch-Channel-Normalization.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from .sync_batch_norm import SyncBatchNorm2d, is_distributed


class EstimatedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization by running estimates, in training as in evaluation (``EstBN``).

    With m and v the running mean and variance before the step, s the moving speed, and E the mean
    over the batch and the area of a channel, a step in training first updates

        m' = (1 - s) m + s E[x],     v' = (1 - s) v + s E[(x - m)^2],

    and then normalizes by the new estimates, which are constants to the gradient:

        y = weight (x - m') / sqrt(v' + eps) + bias.

    So a single image is not normalized by its own statistics alone. The estimates are computed in
    float32 if the input is in half precision. An empty batch leaves them as they are. Takes and
    returns (N, C, H, W), N = 0 included.

    It is a ``BatchNorm2d``, because Detectron2 looks for those: it makes it a
    ``FrozenBatchNorm2d`` in frozen stages and gives its parameters SOLVER.WEIGHT_DECAY_NORM.
    ``num_batches_tracked`` stays 0, as in the reference. A forward that is run again to save memory
    (activation checkpointing) would move the estimates again: leave it out of such a part.

    Args:
        num_features: C.
        eps: added to the variance.
        sync: let E be over the batches of all processes, where ``torch.distributed`` is
            initialized. Otherwise each process keeps estimates of its own, and those of the first
            are saved, as with ``BatchNorm2d``.

    Raises:
        RuntimeError: in training, while ``moving_speed`` is unset.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, *, sync: bool = False) -> None:
        super().__init__(num_features, eps)
        self.sync = sync
        # A tensor, so that a schedule neither waits for a GPU nor compiles the layer again.
        self.register_buffer("estbn_moving_speed", torch.zeros(1))
        # What forward has to know of it, without waiting for the GPU.
        self._can_move = False

    estbn_moving_speed: torch.Tensor

    @property
    def moving_speed(self) -> float:
        """The fraction of the way that the estimates move to the statistics of a batch; 0 is unset.
        Saved in a state dict as ``estbn_moving_speed``. Reading it waits for the GPU."""
        return float(self.estbn_moving_speed)

    @moving_speed.setter
    def moving_speed(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(
                f"moving_speed is {value}, but the estimates can move only a fraction of the way "
                "to the statistics of a batch. Set it to more than 0 and at most 1."
            )
        self.estbn_moving_speed.fill_(value)
        self._can_move = value > 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(input)
        mean, var = self.running_mean, self.running_var
        if self.training:
            if not self._can_move:
                raise RuntimeError(
                    "moving_speed of an EstimatedBatchNorm2d is 0 (unset): the estimates that it "
                    "normalizes by would never update. Set moving_speed before training, "
                    "as gnws_d2.engine.Trainer does from MODEL.BCN.MOVING_SPEED, or call eval()."
                )
            mean, var = self._update(input)
        return F.batch_norm(input, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    @torch.no_grad()
    def _update(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the estimates, and return them as tensors that the next step does not change:
        backward needs them."""
        assert self.running_mean is not None and self.running_var is not None
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        dims = (0, 2, 3)
        deviation = x.to(wide) - mean.view(1, -1, 1, 1)
        count = deviation.new_full((1,), x.numel() // x.shape[1])
        sums = torch.cat([deviation.sum(dims), deviation.square().sum(dims), count])
        if self.sync and is_distributed():
            dist.all_reduce(sums)
        total = sums[-1]
        speed = self.estbn_moving_speed.to(wide) * total.clamp(max=1)  # no sample, no move
        first, second = (sums[:-1] / total.clamp(min=1)).view(2, -1)
        mean = mean + speed * first
        var = var + speed * (second - var)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return mean, var

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._can_move = self.moving_speed > 0

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, sync={self.sync}"


class BatchChannelNorm2d(nn.GroupNorm):
    """Batch normalization, then channel normalization: each group of channels of each image to
    mean 0 and (biased) variance 1, scaled and shifted by one number per group (``BCNorm``).

    In a state dict, ``weight`` and ``bias`` are (1, num_groups, 1), and ``bn`` is the batch
    normalization with its own per-channel ones. Takes and returns (N, C, H, W), N = 0 included.

    It is a ``GroupNorm``, because Detectron2 applies SOLVER.WEIGHT_DECAY_NORM by class.

    Args:
        num_channels: C.
        num_groups: a divisor of C.
        eps: added to the variance of a group; the batch normalization has 1e-5.
        estimate: normalize by estimates, see :class:`EstimatedBatchNorm2d`: for micro-batches.
            Otherwise by the statistics of the batch.
        sync: batch statistics of all processes, where ``torch.distributed`` is initialized.

    Raises:
        ValueError: ``num_channels`` is not a multiple of ``num_groups``.
    """

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        *,
        estimate: bool = False,
        sync: bool = False,
    ) -> None:
        if num_channels % num_groups:
            raise ValueError(
                f"BatchChannelNorm2d has {num_groups} groups, but num_channels is {num_channels}. "
                f"Use a multiple of {num_groups} channels, or another num_groups."
            )
        super().__init__(num_groups, num_channels, eps, affine=False)
        self.weight = nn.Parameter(torch.ones(1, num_groups, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_groups, 1))
        self.bn: EstimatedBatchNorm2d | nn.SyncBatchNorm | nn.BatchNorm2d
        if estimate:
            self.bn = EstimatedBatchNorm2d(num_channels, sync=sync)
        elif sync:
            self.bn = SyncBatchNorm2d(num_channels)
        else:
            self.bn = nn.BatchNorm2d(num_channels)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = self.bn(input)
        weight, bias = self.per_channel(self.weight), self.per_channel(self.bias)
        # Not F.group_norm, which in training refuses one value a group; it becomes the bias.
        return torch.group_norm(x, self.num_groups, weight, bias, self.eps)

    def per_channel(self, parameter: torch.Tensor) -> torch.Tensor:
        """``weight`` or ``bias`` as (C,)."""
        return parameter.expand(1, -1, self.num_channels // self.num_groups).reshape(-1)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}"
