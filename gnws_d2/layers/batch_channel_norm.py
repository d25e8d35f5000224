"""Batch-Channel Normalization (Qiao et al., arXiv 1911.09738; with estimated statistics for
micro-batches, arXiv 1903.10520), and the batch normalizations it builds on.

The mathematics and the names in a state dict are those of ``BCNorm`` and ``EstBN`` in the authors'
implementation, https://github.com/joe-siyuan-qiao/Batch-Channel-Normalization.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F


class EstimatedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization by running estimates, in training as in evaluation (``EstBN``).

    With m and v the running mean and variance before the step, s the moving speed, and E the mean
    over the batch and the area of a channel, a step in training first updates

        m' = (1 - s) m + s E[x],     v' = (1 - s) v + s E[(x - m)^2],

    and then normalizes by the new estimates, which are constants to the gradient:

        y = weight (x - m') / sqrt(v' + eps) + bias.

    So a single image is not normalized by its own statistics alone. The estimates are computed in
    float32 if the input is in half precision. An empty batch does not change them. Takes and
    returns (N, C, H, W), N = 0 included.

    It is a ``BatchNorm2d`` because Detectron2 looks for those: frozen stages replace it with
    ``FrozenBatchNorm2d``, and its parameters get SOLVER.WEIGHT_DECAY_NORM.
    ``num_batches_tracked`` stays 0, as in the reference. Do not use it within activation
    checkpointing, whose second forward would move the estimates again.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        sync: take E over the batches of all processes if ``torch.distributed`` is initialized.
            Otherwise each process keeps its own estimates, and those of the first are saved, as
            with ``BatchNorm2d``.

    Raises:
        RuntimeError: in training, while ``moving_speed`` is unset.
    """

    plain_class = nn.BatchNorm2d  # which it is at inference

    def __init__(self, num_features: int, eps: float = 1e-5, *, sync: bool = False) -> None:
        super().__init__(num_features, eps)
        self.sync = sync
        # A tensor, so that a schedule neither waits for a GPU nor recompiles the layer.
        self.register_buffer("estbn_moving_speed", torch.zeros(1))
        self._can_move = False  # whether it is set, for forward, which must not wait for the GPU

    estbn_moving_speed: torch.Tensor

    @property
    def moving_speed(self) -> float:
        """The fraction of the way, from 0 (unset) to 1, that the estimates move to the statistics
        of a batch; ``estbn_moving_speed`` in a state dict. Reading it waits for the GPU."""
        return float(self.estbn_moving_speed)

    @moving_speed.setter
    def moving_speed(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(
                f"moving_speed is {value}, but it is a fraction. Set it to more than 0, at most 1."
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
        """Move the estimates, and return them as tensors that the next step does not change, for
        backward."""
        assert self.running_mean is not None and self.running_var is not None
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        deviation = x - mean.view(1, -1, 1, 1)  # wide; on a CPU, var_mean takes four times as long
        count = mean.new_full((1,), x.numel() // x.shape[1])
        sums = torch.cat([deviation.sum((0, 2, 3)), deviation.square_().sum((0, 2, 3)), count])
        if self.sync and _is_distributed():
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


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` that in training normalizes by the statistics of all processes.

    The result is that of one process with all samples, whatever the number and size of each
    process's images; a process with an empty batch takes part. Unlike ``torch.nn.SyncBatchNorm``
    it also runs on the CPU. In evaluation, and without ``torch.distributed``, it computes what its
    parent does. Takes and returns (N, C, H, W), N = 0 included. For the arguments, see
    ``torch.nn.BatchNorm2d``.
    """

    plain_class = nn.BatchNorm2d  # which it is at inference
    momentum: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (self.training and _is_distributed()):
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims, per_channel = (0, 2, 3), (1, -1, 1, 1)
        count = x.new_full((1,), x.numel() // x.shape[1])
        # Differentiable: a process's loss has a gradient at the images of the others.
        sums = all_reduce(torch.cat([x.sum(dims), count]))
        total = sums[-1].clamp(min=1)
        mean = sums[:-1] / total
        # Around the mean, in a second exchange: E[x^2] - E[x]^2 is a difference of two large
        # numbers, without a correct digit where the mean is far from 0.
        centered = x - mean.view(per_channel)
        var = all_reduce(centered.square().sum(dims)) / total
        self._update(mean.detach(), var.detach(), count=sums[-1].detach())
        scale = (var + self.eps).rsqrt() * (self.weight if self.affine else 1)
        out = centered * scale.view(per_channel)
        return (out + self.bias.view(per_channel) if self.affine else out).to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        speed = self.momentum * count.clamp(max=1)  # where no process has a sample, no change
        unbiased = var * count / (count - 1).clamp(min=1)
        self.running_mean += (speed * (mean - self.running_mean)).to(self.running_mean.dtype)
        self.running_var += (speed * (unbiased - self.running_var)).to(self.running_var.dtype)
        self.num_batches_tracked += 1


class BatchChannelNorm2d(nn.GroupNorm):
    """Batch normalization, then channel normalization (``BCNorm``): each group of channels of each
    image to mean 0 and (biased) variance 1, scaled and shifted by one number per group.

    In a state dict, ``weight`` and ``bias`` are (1, num_groups, 1); those of the batch
    normalization ``bn`` are per channel. Takes and returns (N, C, H, W), N = 0 included.

    It is a ``GroupNorm`` because Detectron2 applies SOLVER.WEIGHT_DECAY_NORM by class.

    Args:
        num_channels: C, the number of channels.
        num_groups: a divisor of C.
        eps: added to the variance of a group; the batch normalization has 1e-5.
        estimate: normalize by running estimates (:class:`EstimatedBatchNorm2d`), for
            micro-batches, instead of the statistics of the batch.
        sync: use the statistics of all processes if ``torch.distributed`` is initialized.

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
        if estimate:
            self.bn: nn.BatchNorm2d = EstimatedBatchNorm2d(num_channels, sync=sync)
        else:
            self.bn = (SyncBatchNorm2d if sync else nn.BatchNorm2d)(num_channels)

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


def _is_distributed() -> bool:
    """Whether there are other processes to exchange statistics with."""
    return dist.is_initialized() and dist.get_world_size() > 1
