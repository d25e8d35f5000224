"""GroupNorm + ReLU and its gradient by torch's own kernels: for the CPU, for inputs that Triton's
kernels do not take, and as their reference."""

from __future__ import annotations

import torch


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    num_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``relu(group_norm(x) + residual)``, and the statistics.

    Args:
        x: (N, C, *).
        weight, bias: (C,).
        residual: of the shape of ``x``, or None.
        num_groups: G, a divisor of C.
        eps: added to the variance.

    Returns:
        y, of the shape, dtype and memory format of ``x``; mean and 1 / deviation, (N, G), in
        float32, or in float64 as ``x``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    # Contiguous, since on the CPU torch takes the moments of channels_last as E[x^2] - E[x]^2, and
    # weights as if they were.
    wide, weight, bias = (t.to(dtype).contiguous() for t in (x, weight, bias))
    sizes = (*x.shape[:2], x.shape[2:].numel())
    y, mean, rstd = torch.ops.aten.native_group_norm(wide, weight, bias, *sizes, num_groups, eps)
    if residual is not None:
        y += residual
    return _like(y.relu_(), x), mean, rstd


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y of :func:`forward` again, bit for bit, from its arguments and its statistics. Torch has no
    kernel that takes those; the one that computes them again is faster than plain operations."""
    return forward(x, weight, bias, residual, mean.shape[1], eps)[0]


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of :func:`forward` with respect to x, weight, bias and residual.

    Args:
        grad: the gradient of y.
        y: what :func:`forward` returned, where it added a residual, else None.
        x, weight, bias, mean, rstd, eps: its other arguments and results.

    Returns:
        Each of the shape of its tensor; the last is empty where ``y`` is None.
    """
    num_groups = mean.shape[1]
    added = y is not None
    if y is None:
        y = normalize(x, weight, bias, mean, rstd, eps)
    dtype = mean.dtype
    grad = grad.to(dtype).contiguous()
    masked = torch.ops.aten.threshold_backward(grad, y.to(dtype).contiguous(), 0)
    wide = x.to(dtype).contiguous()
    sizes = (*x.shape[:2], x.shape[2:].numel())
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
        *(masked, wide, mean, rstd, weight.to(dtype).contiguous()),
        *(*sizes, num_groups, [True, True, True]),
    )
    grad_residual = _like(masked, x) if added else masked.new_empty(0, dtype=x.dtype)
    grad_weight, grad_bias = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)
    return _like(grad_x, x), grad_weight, grad_bias, grad_residual


def format_of(x: torch.Tensor) -> torch.memory_format:
    """channels_last where ``x`` has that format and is not contiguous as well. A tensor of neither
    format counts as contiguous, and is copied."""
    is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last and not x.is_contiguous() else torch.contiguous_format


def _like(result: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return result.to(x.dtype).contiguous(memory_format=format_of(x))
