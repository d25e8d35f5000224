"""Weight Standardization (Qiao et al., "Micro-Batch Training with Batch-Channel Normalization
and Weight Standardization", arXiv 1903.10520): the formula and its gradient.

The operation is the one the published GN+WS detectors were trained with (``ConvWS2d`` of mmcv):
unbiased standard deviation, epsilon added to it outside the root. timm's ``StdConv2d`` (biased,
epsilon inside) is a different operation, with which those detectors do not work.
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
        becomes zeros, with a finite gradient.

    Raises:
        ValueError: the fan-in is 1, where the unbiased standard deviation does not exist.
    """
    check_fan_in(weight.shape)
    differentiated = torch.is_grad_enabled() and weight.requires_grad
    if differentiated and not is_recorded():
        return _Standardize.apply(weight, eps)
    return _formula(weight, eps)


def is_recorded() -> bool:
    """Whether torch.compile or torch.jit is recording: they take plain operations, and decide
    themselves what they keep for backward."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_fan_in(shape: torch.Size) -> None:
    """Raise ValueError where a weight of this shape has one number per filter."""
    if shape[1:].numel() == 1:
        raise ValueError(
            f"cannot standardize a weight of shape {tuple(shape)}: each filter has a fan-in of 1, "
            "and one number has no standard deviation. Leave this convolution (depthwise 1x1, or "
            "one input channel) unstandardized."
        )


def _formula(weight: torch.Tensor, eps: float) -> torch.Tensor:
    centered, _, std = _moments(weight)
    return (centered / (std + eps)).to(weight.dtype)


def _moments(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weight minus its mean, that mean, and the unbiased standard deviation, at least in
    float32. The norm of the centered weight takes fewer and faster passes than ``Tensor.std``, and
    its gradient is finite where the deviation is 0."""
    weight = _widened(weight)
    flat = weight.flatten(1)
    per_filter = (-1,) + (1,) * (weight.dim() - 1)
    mean = flat.mean(1).view(per_filter)
    centered = weight - mean
    norm = torch.linalg.vector_norm(centered.flatten(1), dim=1)
    return centered, mean, (norm * (flat.shape[1] - 1) ** -0.5).view(per_filter)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


# For functions of autograd, whose forward keeps two numbers per filter and no copy of the weight:


def standardize_filters(
    weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The standardized weight in ``dtype``, its mean and its deviation, both (C_out, 1, ...)."""
    centered, mean, std = _moments(weight)
    return centered.div_(std + eps).to(dtype), mean, std


def restandardize_filters(
    weight: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    """The standardized weight again from what :func:`standardize_filters` returned, bit for bit.
    Where a second derivative is needed, mean and deviation depend on the weight."""
    if torch.is_grad_enabled():
        return _formula(_widened(weight), eps).to(dtype)
    return (_widened(weight) - mean).div_(std + eps).to(dtype)


def weight_gradient(
    grad: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, eps: float
) -> torch.Tensor:
    """The gradient of ``weight``, in its dtype, from that of its standardized form, in any.

    With n the fan-in, c the centered weight, s its deviation, r = 1 / (s + eps) and g the gradient
    of the standardized weight r c:

        dw = r (g - mean(g)) - c r^2 sum(g c) / ((n - 1) s),     second term 0 where s = 0.

    That is the gradient of group normalization with each filter as a group of one channel,
    gamma i (g - mean(g) - c i^2 mean(g c)), for other constants gamma and i; its kernel computes
    it in fewer passes over the weight than single operations do.
    """
    if torch.is_grad_enabled():  # a second derivative is needed
        standardized, grad = _formula(weight, eps), grad.to(weight.dtype)
        return torch.autograd.grad(standardized, weight, grad, create_graph=True)[0]
    if weight.dim() == 4 and weight.stride(1) == 1 and not weight.is_contiguous():
        order = (0, 2, 3, 1)  # as channels_last lies in memory
        grad, weight = grad.permute(order), weight.permute(order)
        return weight_gradient(grad, weight, mean, std, eps).permute(0, 3, 1, 2)
    wide = _widened(weight)
    filters, n = len(weight), weight[0].numel()
    std = std.flatten()
    scale = (std + eps).reciprocal()
    # Where s is that much smaller than eps, the second term is nothing beside the first.
    inverse = (scale * (n / (n - 1)) / std).sqrt().masked_fill(std < 1e-30, 1.0)
    found, _, _ = torch.ops.aten.native_group_norm_backward(
        # Flat: a weight of a 1x1 convolution may have the strides of channels_last, by which the
        # kernel would choose another path.
        grad.to(wide.dtype).contiguous().flatten(1),
        wide.contiguous().flatten(1),
        mean.view(1, filters),
        inverse.view(1, filters),
        scale / inverse,
        *(1, filters, n, filters),
        [True, False, False],
    )
    return found.view(weight.shape).to(weight.dtype)


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
