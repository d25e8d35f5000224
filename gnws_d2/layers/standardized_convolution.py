"""Standardization and convolution as one function. For backward it keeps two numbers per filter
(see ``weight_standardization.py``), not the standardized or the centered weight."""

from __future__ import annotations

from typing import Any

import torch

from .weight_standardization import restandardize_filters, standardize_filters, weight_gradient

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def standardized_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    eps: float,
) -> torch.Tensor:
    """``conv(x, standardize_weight(weight, eps), bias, *geometry)`` in 1, 2 or 3 dimensions.

    Backward recomputes the standardized weight from its mean and deviation, bit for bit. Under
    autocast the weight is standardized in its own precision, and the convolution runs in
    autocast's. Differentiable twice.

    Args:
        x: (N, C_in, *size).
        weight: (C_out, C_in / groups, *kernel_size).
        bias: (C_out,) or None.
        geometry: stride, padding and dilation, a number for each dimension, and groups.
        eps: see :func:`~gnws_d2.layers.standardize_weight`.
    """
    dtype = weight.dtype
    if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
    return _StandardizedConvolution.apply(x, weight, bias, eps, dtype, geometry)


class _StandardizedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        dtype: torch.dtype,
        geometry: Geometry,
    ) -> torch.Tensor:
        standardized, mean, std = standardize_filters(weight, eps, dtype)
        ctx.save_for_backward(x, weight, mean, std)
        ctx.eps, ctx.dtype, ctx.geometry = eps, dtype, geometry
        ctx.bias_sizes = None if bias is None else bias.shape
        stride, padding, dilation, groups = geometry
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return torch.convolution(
                x, standardized, bias, stride, padding, dilation, False, [0] * len(stride), groups
            )

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, std = ctx.saved_tensors
        standardized = restandardize_filters(weight, mean, std, ctx.eps, ctx.dtype)
        stride, padding, dilation, groups = ctx.geometry
        needed = list(ctx.needs_input_grad[:3])
        grad_x, grad_standardized, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            standardized,
            ctx.bias_sizes,
            stride,
            padding,
            dilation,
            False,
            [0] * len(stride),
            groups,
            needed,
        )
        grad_weight = None
        if needed[1]:
            grad_weight = weight_gradient(grad_standardized, weight, mean, std, ctx.eps)
        return grad_x, grad_weight, grad_bias, None, None, None
