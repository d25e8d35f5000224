"""Weight Standardization (Qiao et al., "Micro-Batch Training with Batch-Channel Normalization
and Weight Standardization", arXiv 1903.10520): the formula, its gradient, and the convolution.

The operation is the one that the published GN+WS detectors were trained with (``ConvWS2d`` of
mmcv): unbiased standard deviation, epsilon added to it outside the root. timm's ``StdConv2d``
(biased, epsilon inside) is a different operation; those detectors do not work with it.
"""

from typing import Any

import torch
from torch import Tensor

# Stride, padding and dilation, one number per dimension each, and groups.
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def standardize_weight(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardize every filter of a convolution over its fan-in: ``(w - mean) / (std + eps)``.

    Args:
        weight: (C_out, C_in / groups, *kernel_size), any floating dtype. Half-precision weights
            are standardized in float32 and returned in their own dtype.
        eps: added to the unbiased standard deviation, in the units of ``weight``.

    Returns:
        A tensor of the shape, dtype and memory format of ``weight``. A filter of zero variance
        becomes zeros, with a finite gradient.

    Raises:
        ValueError: the fan-in is 1, so the unbiased standard deviation does not exist.
    """
    check_fan_in(weight.shape)
    differentiated = torch.is_grad_enabled() and weight.requires_grad
    if differentiated and not takes_plain_operations():
        return _Standardize.apply(weight, eps)
    return _formula(weight, eps)


def standardized_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, eps: float
) -> Tensor:
    """``conv(x, standardize_weight(weight, eps), bias, *geometry)`` in 1, 2 or 3 dimensions.

    Backward recomputes the standardized weight from its mean and deviation, bit for bit. Under
    autocast the weight is standardized in its own precision, and the convolution runs in
    autocast's. Differentiable twice.

    Args:
        x: (N, C_in, *size).
        weight: (C_out, C_in / groups, *kernel_size).
        bias: (C_out,) or None.
        geometry: see :data:`Geometry`.
        eps: see :func:`standardize_weight`.
    """
    dtype = weight.dtype
    if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
    return _StandardizedConvolution.apply(x, weight, bias, eps, dtype, geometry)


def takes_plain_operations() -> bool:
    """Whether torch.compile or torch.jit is recording, or torch.func (vmap, grad, jvp, ...) is
    transforming. They know the rules of plain operations, and what to keep for backward."""
    # An autograd.Function with setup_context would also serve torch.func, except in forward mode.
    # But torch then inspects its signature in each call: 4 ms in a step of a ResNet-50.
    is_transforming = torch._C._are_functorch_transforms_active()
    return is_transforming or torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_fan_in(shape: torch.Size) -> None:
    """Raise ValueError if a weight of this shape has only one number per filter."""
    if shape[1:].numel() == 1:
        raise ValueError(
            f"cannot standardize a weight of shape {tuple(shape)}: each filter has a fan-in of 1, "
            "and one number has no standard deviation. Leave this convolution (depthwise 1x1, or "
            "one input channel) unstandardized."
        )


def _formula(weight: Tensor, eps: float) -> Tensor:
    centered, _, std = _moments(weight)
    return (centered / (std + eps)).to(weight.dtype)


def _moments(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _weight_gradient(grad: Tensor, weight: Tensor, mean: Tensor, std: Tensor, eps: float) -> Tensor:
    """The gradient of ``weight``, in its dtype, from that of its standardized form, in any dtype.

    With n the fan-in, c the centered weight, s its deviation, r = 1 / (s + eps) and g the gradient
    of the standardized weight r c:

        dw = r (g - mean(g)) - c r^2 sum(g c) / ((n - 1) s),     second term 0 where s = 0.

    This is the gradient of group normalization with each filter as a group of one channel,
    gamma i (g - mean(g) - c i^2 mean(g c)), for other constants gamma and i. Its kernel takes fewer
    passes over the weight than single operations do.
    """
    if torch.is_grad_enabled():  # a second derivative is needed
        standardized, grad = _formula(weight, eps), grad.to(weight.dtype)
        return torch.autograd.grad(standardized, weight, grad, create_graph=True)[0]
    if weight.dim() == 4 and weight.stride(1) == 1 and not weight.is_contiguous():
        order = (0, 2, 3, 1)  # as channels_last lies in memory
        grad, weight = grad.permute(order), weight.permute(order)
        return _weight_gradient(grad, weight, mean, std, eps).permute(0, 3, 1, 2)
    wide = _widened(weight)
    filters, n = len(weight), weight[0].numel()
    std = std.flatten()
    scale = (std + eps).reciprocal()
    # Where s is that much smaller than eps, the second term is negligible.
    inverse = (scale * (n / (n - 1)) / std).sqrt().masked_fill(std < 1e-30, 1.0)
    found, _, _ = torch.ops.aten.native_group_norm_backward(
        # Flat: the weight of a 1x1 convolution may have the strides of channels_last, by which the
        # kernel would choose another path. view() has a rule for batches of gradients.
        grad.to(wide.dtype).contiguous().view(1, filters, n),
        wide.contiguous().view(1, filters, n),
        mean.view(1, filters),
        inverse.view(1, filters),
        scale / inverse,
        *(1, filters, n, filters),
        [True, False, False],
    )
    return found.view(weight.shape).to(weight.dtype)


# Autograd would keep two more copies of each weight. These functions keep the weight, which exists
# anyway, and two numbers per filter: its mean and deviation, both (C_out, 1, ...).


class _Standardize(torch.autograd.Function):
    """The formula with its closed-form gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, eps: float) -> Tensor:
        centered, mean, std = _moments(weight)
        ctx.save_for_backward(weight, mean, std)
        ctx.eps = eps
        return centered.div_(std + eps).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight, mean, std = ctx.saved_tensors
        return _weight_gradient(grad, weight, mean, std, ctx.eps), None


class _StandardizedConvolution(torch.autograd.Function):
    """Standardization and convolution as one function, which does not keep the standardized
    weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype,
        geometry: Geometry,
    ) -> Tensor:
        centered, mean, std = _moments(weight)
        ctx.save_for_backward(x, weight, mean, std)
        ctx.eps, ctx.dtype, ctx.geometry = eps, dtype, geometry
        ctx.bias_sizes = None if bias is None else bias.shape
        standardized = centered.div_(std + eps).to(dtype)
        stride, padding, dilation, groups = geometry
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return torch.convolution(
                x, standardized, bias, stride, padding, dilation, False, [0] * len(stride), groups
            )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, std = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, mean and std depend on the weight
            standardized = _formula(_widened(weight), ctx.eps).to(ctx.dtype)
        else:
            standardized = (_widened(weight) - mean).div_(std + ctx.eps).to(ctx.dtype)
        stride, padding, dilation, groups = ctx.geometry
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            *(grad, x, standardized, ctx.bias_sizes),
            *(stride, padding, dilation, False, [0] * len(stride), groups),
            list(ctx.needs_input_grad[:3]),
        )
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad_weight, weight, mean, std, ctx.eps)
        return grad_x, grad_weight, grad_bias, None, None, None
