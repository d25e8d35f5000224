"""Weight Standardization (Qiao et al., "Micro-Batch Training with Batch-Channel Normalization
and Weight Standardization", arXiv 1903.10520).

The operation is the one the published GN+WS detectors were trained with (``ConvWS2d`` of mmcv):
unbiased standard deviation, epsilon added to it outside the root. timm's ``StdConv2d`` (biased,
epsilon inside) is another operation and does not give the same detectors.
"""

from __future__ import annotations

from typing import Any

import torch


def standardize_weight(weight: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Standardize every filter of a convolution over its fan-in: ``(w - mean) / (std + eps)``.

    Args:
        weight: (C_out, C_in / groups, *kernel_size), any floating dtype. Half-precision weights
            are standardized in float32 and returned in their own dtype.
        eps: added to the unbiased standard deviation, in the units of ``weight``.

    Returns:
        A tensor of the shape, dtype and memory format of ``weight``. A filter of zero variance
        gives zeros, and a finite gradient.

    Raises:
        ValueError: the fan-in is 1, where the unbiased standard deviation does not exist.
    """
    check_fan_in(weight.shape)
    differentiated = torch.is_grad_enabled() and weight.requires_grad
    if not differentiated or torch.jit.is_tracing():
        return _formula(widened(weight), eps).to(weight.dtype)
    if torch.compiler.is_compiling():
        # The compiler decides itself what it keeps for backward. From functions of autograd that
        # work in place or return what they were given it loses the gradient (torch 2.11).
        centered, _, std = _moments(widened(weight))
        return (centered / (std + eps)).to(weight.dtype)
    return _Standardize.apply(weight, eps)


def widened(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` in the precision that it is standardized in."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def check_fan_in(shape: torch.Size) -> None:
    """Raise ValueError where a weight of this shape has one number per filter."""
    if shape[1:].numel() == 1:
        raise ValueError(
            f"cannot standardize a weight of shape {tuple(shape)}: each filter has a fan-in of 1, "
            "and one number has no standard deviation. Leave this convolution (depthwise 1x1, or "
            "one input channel) unstandardized."
        )


def _formula(weight: torch.Tensor, eps: float) -> torch.Tensor:
    """With the reference's own operations for mean and deviation, so that its float32 rounding is
    met as well: a mean that rounds otherwise shifts all weights of a filter alike, which adds up
    over the fan-in, and in the parity models moves detection scores by more than 1e-3."""
    flat = weight.flatten(1)
    per_filter = (-1,) + (1,) * (weight.dim() - 1)
    scale = (flat.std(1).view(per_filter) + eps).reciprocal()
    return (weight - flat.mean(1).view(per_filter)) * scale


def standardize_filters(
    weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The standardized weight in ``dtype``, and its mean and standard deviation, (C_out, 1, ...),
    for :func:`weight_gradient`."""
    centered, mean, std = _moments(widened(weight))
    return centered.div_(std + eps).to(dtype), mean, std


def standardize_filters_again(
    weight: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """The standardized weight of :func:`standardize_filters` from its moments, bit for bit."""
    return (widened(weight) - mean).div_(std + eps).to(dtype)


def _moments(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weight less its mean, that mean, and the unbiased standard deviation. Fewer and faster
    passes than ``Tensor.std`` takes, and a gradient that is finite where the deviation is 0."""
    flat = weight.flatten(1)
    per_filter = (-1,) + (1,) * (weight.dim() - 1)
    mean = flat.mean(1).view(per_filter)
    centered = weight - mean
    norm = torch.linalg.vector_norm(centered.flatten(1), dim=1)
    return centered, mean, (norm * (flat.shape[1] - 1) ** -0.5).view(per_filter)


def weight_gradient(
    grad: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, eps: float
) -> torch.Tensor:
    """The gradient of ``weight``, in its dtype, from that of its standardized form, in any.

    With n the fan-in, c the centered weight, s its deviation, r = 1 / (s + eps) and g the gradient
    of the standardized weight r c:

        dw = r (g - mean(g)) - c r^2 sum(g c) / ((n - 1) s),     second term 0 where s = 0.
    """
    wide = widened(weight)
    grad = grad.to(wide.dtype)
    if torch.is_grad_enabled():  # for a second derivative: mean and std depend on the weight
        found = _differentiable_gradient(grad, wide, eps)
    else:
        found = _gradient(grad, wide, mean, std, eps)
    return found.to(weight.dtype)


def _gradient(
    grad: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, eps: float
) -> torch.Tensor:
    if weight.dim() == 4 and weight.stride(1) == 1 and not weight.is_contiguous():
        order = (0, 2, 3, 1)  # as channels_last lies in memory
        grad, weight = grad.permute(order), weight.permute(order)
        return _gradient(grad, weight, mean, std, eps).permute(0, 3, 1, 2)
    # The gradient of group normalization is this one for other constants: with each filter as a
    # group of one channel, it is gamma i (g - mean(g) - c i^2 mean(g c)).
    n = weight[0].numel()
    std = std.flatten()
    scale = (std + eps).reciprocal()
    # Where s is that much smaller than eps, the second term is nothing beside the first.
    inverse = (scale * (n / (n - 1)) / std).sqrt().masked_fill(std < 1e-30, 1.0)
    per_filter = (1, len(weight))
    grad_weight, _, _ = torch.ops.aten.native_group_norm_backward(
        # Flat: a weight of a 1x1 convolution may have the strides of channels_last, by which the
        # kernel would choose another path.
        grad.contiguous().flatten(1),
        weight.contiguous().flatten(1),
        mean.view(per_filter),
        inverse.view(per_filter),
        scale / inverse,
        1,
        len(weight),
        n,
        len(weight),
        [True, False, False],
    )
    return grad_weight.view(weight.shape)


def _differentiable_gradient(grad: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    centered, _, std = _moments(weight)
    dims = tuple(range(1, weight.dim()))
    scale = (std + eps).reciprocal()
    projection = (grad * centered).sum(dims, keepdim=True) * scale
    slope = projection / (std.masked_fill(std == 0, torch.inf) * (weight[0].numel() - 1))
    grad_weight = (grad - grad.mean(dims, keepdim=True)) * scale
    return torch.addcmul(grad_weight, centered, slope * scale, value=-1)


class _Standardize(torch.autograd.Function):
    """The formula with its closed-form gradient. Autograd would keep two more copies of each
    weight; this keeps two numbers per filter and centers the weight again in backward."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, eps: float) -> torch.Tensor:
        standardized, mean, std = standardize_filters(weight, eps, weight.dtype)
        ctx.save_for_backward(weight, mean, std)
        ctx.eps = eps
        return standardized

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        weight, mean, std = ctx.saved_tensors
        return weight_gradient(grad, weight, mean, std, ctx.eps), None
