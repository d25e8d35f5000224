"""Weight Standardization (Qiao et al., "Micro-Batch Training with Batch-Channel Normalization
and Weight Standardization", arXiv 1903.10520): the formula, its gradient, and the convolution.

The operation is the one that the published GN+WS detectors were trained with (``ConvWS2d`` of
mmcv): unbiased standard deviation, epsilon added to it outside the root. timm's ``StdConv2d``
(biased, epsilon inside) is a different operation; those detectors do not work with it.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def standardize_weight(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Standardize every filter of a convolution over its fan-in: ``(w - mean) / (std + eps)``.

    Args:
        weight: ``(C_out, C_in / groups, *kernel_size)``, any floating dtype. Half-precision
            weights are standardized in float32 and returned in their own dtype.
        eps: added to the unbiased standard deviation, in the units of ``weight``.

    Returns:
        A tensor of the shape, dtype and memory format of ``weight``. A filter of zero variance
        becomes zeros, with a finite gradient.

    Raises:
        ValueError: the fan-in is 1, so the unbiased standard deviation does not exist.
    """
    check_fan_in(weight.shape)
    if torch.is_grad_enabled() and weight.requires_grad and not takes_plain_operations(weight):
        return _Standardize.apply(weight, eps)
    return _formula(weight, eps)


class Statistics(NamedTuple):
    """Of each filter, (C_out,), what standardizes it in one call and gives its gradient in another.
    With n the fan-in, c^2 = n / (n - 1), s the unbiased deviation and r = 1 / (s + eps):"""

    mean: Tensor
    inverse: Tensor  # i = c / s
    factor: Tensor  # r sqrt(i + offset)
    inner: Tensor  # c sqrt(r / s)
    outer: Tensor  # r / inner
    offset: float  # c / eps
    eps: float
    spare: list[Tensor]  # memory for the first standardized weight


def standardized_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any, eps: float | Statistics
) -> Tensor:
    """``conv(x, standardize_weight(weight, eps), bias, *geometry)`` in 1, 2 or 3 dimensions, as
    many numbers in stride, padding and dilation, and groups. ``eps`` may be the statistics instead.

    Backward standardizes the weight again, bit for bit. Under autocast it is standardized in its
    own precision, and the convolution runs in autocast's. Differentiable twice.
    """
    dtype = weight.dtype
    if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
    known = eps if isinstance(eps, Statistics) else measure(weight, eps)
    return _StandardizedConvolution.apply(x, weight, bias, known, dtype, geometry)


def takes_plain_operations(weight: Tensor) -> bool:
    """Whether torch.compile or torch.jit is recording, torch.func (vmap, grad, jvp, ...) is
    transforming, or the weight is on the meta device or a FakeTensor. They know the rules of plain
    operations, and what to keep for backward."""
    if type(weight) not in (Tensor, nn.Parameter) or weight.is_meta:
        return True
    # A Function with setup_context fails in forward mode, and costs 4 ms in a step of a ResNet-50.
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
    wide = weight.double() if weight.dtype == torch.float64 else weight.float()
    per_filter = (-1,) + (1,) * (weight.dim() - 1)
    centered = wide - wide.flatten(1).mean(1).view(per_filter)
    # Fewer and faster passes than ``Tensor.std``, and a finite gradient where the deviation is 0.
    norm = torch.linalg.vector_norm(centered.flatten(1), dim=1)
    std = (norm * (weight[0].numel() - 1) ** -0.5).view(per_filter)
    return (centered / (std + eps)).to(weight.dtype)


def _is_last(weight: Tensor) -> bool:
    # is_contiguous() cannot tell how the weight of a 1x1 convolution lies in memory.
    return weight.dim() > 2 and weight.stride(1) == 1 and weight.stride(-1) == weight.shape[1]


def _rows(tensor: Tensor, weight: Tensor) -> Tensor:
    """A tensor of the shape of ``weight``, at least in float32, as (1, C_out, fan-in)."""
    wide = tensor.double() if weight.dtype == torch.float64 else tensor.float()
    return (wide.movedim(1, -1) if _is_last(weight) else wide).reshape(1, len(weight), -1)


def _unrowed(rows: Tensor, weight: Tensor) -> Tensor:
    """The inverse of :func:`_rows`, with the strides of ``weight``."""
    if not _is_last(weight):
        return rows.view(weight.shape)
    return rows.view(weight.movedim(1, -1).shape).movedim(-1, 1)


@torch.no_grad()
def measure(weight: Tensor, eps: float) -> Statistics:
    # Spare: rows of mean 0 and biased deviation 1. On a CPU, std_mean takes several times as long.
    rows, eps = _rows(weight, weight), max(eps, 1e-30)
    _, filters, n = rows.shape
    least = 8 * eps * torch.finfo(rows.dtype).eps  # 0 has no inverse, and eps rounds to this
    spare, *found = torch.native_group_norm(rows, None, None, 1, filters, n, filters, least**2)
    mean, inverse = found[0][0], found[1][0]
    # As r = i / (c + eps i), the others are multiples of p or i p, with p = 1 / sqrt(i + c / eps):
    # factor = i p / eps, inner = sqrt(c / eps) i p, outer = p / sqrt(c eps). By p, batch
    # normalization in evaluation multiplies where the variance is i and its eps is c / eps. So its
    # gradients at input and weight are all three, in one call.
    offset = math.sqrt(n / (n - 1)) / eps
    grad, at, zeros, none = _constants(offset, eps, filters, rows.dtype, rows.device)
    (inner, factor), outer, _ = torch.ops.aten.native_batch_norm_backward(
        *(grad, at, inverse, zeros, inverse, none, none, False, offset, [True, True, False])
    )
    return Statistics(mean, inverse, factor, inner, outer, offset, eps, [spare])


@functools.lru_cache
def _constants(offset: float, eps: float, filters: int, *kind: Any) -> tuple[Tensor, ...]:
    numbers = [[math.sqrt(offset)], [1 / eps], [1 / (offset * eps)], [0.0]]
    rows = torch.tensor(numbers, dtype=kind[0], device=kind[1]).repeat(1, filters)
    return rows[:2], rows[2:], rows[3], rows[3, :0]


def _standardized(weight: Tensor, known: Statistics, dtype: torch.dtype) -> Tensor:
    if torch.is_grad_enabled():  # a second derivative is needed
        return _formula(weight, known.eps).to(dtype)
    mean, inverse, factor, _, _, offset, _, spare = known
    how: Any = (factor, None, mean, inverse, False, 0.0, offset)
    out = (spare.pop(), mean[:0], mean[:0]) if spare else None
    rows, _, _ = torch.native_batch_norm(_rows(weight, weight), *how, out=out)
    return _unrowed(rows, weight).to(dtype)


def _weight_gradient(grad: Tensor, weight: Tensor, known: Statistics) -> Tensor:
    """The gradient of ``weight``, in its dtype, from that of its standardized form, in any dtype.

    With c the centered weight, and g the gradient of the standardized weight r c:

        dw = r (g - mean(g)) - c r^2 sum(g c) / ((n - 1) s),     second term 0 where s = 0.

    This is the gradient of group normalization with each filter as a group of one channel,
    outer inner (g - mean(g) - c inner^2 mean(g c)), for other constants than its own.
    """
    if torch.is_grad_enabled():
        standardized, grad = _formula(weight, known.eps), grad.to(weight.dtype)
        return torch.autograd.grad(standardized, weight, grad, create_graph=True)[0]
    rows = _rows(weight, weight)
    found, _, _ = torch.ops.aten.native_group_norm_backward(
        *(_rows(grad, weight), rows, known.mean[None], known.inner[None], known.outer),
        *(*rows.shape, len(weight), [True, False, False]),
    )
    return _unrowed(found, weight).to(weight.dtype)


class _Standardize(torch.autograd.Function):
    """The formula, which keeps the weight, as it exists anyway, and not two more copies of it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.known = measure(weight, eps)
        _, inverse, *_, offset, eps, spare = ctx.known
        rows = spare.pop().div_(torch.rsub(inverse, offset * eps, alpha=-eps)[:, None])  # c + eps i
        return _unrowed(rows, weight).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _weight_gradient(grad, ctx.saved_tensors[0], ctx.known), None


class _StandardizedConvolution(torch.autograd.Function):
    """Standardization and convolution, without keeping the standardized weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        known, dtype, (stride, padding, dilation, groups) = settings
        bias = None if bias is None else bias.to(dtype)
        standardized, zeros = _standardized(weight, known, dtype), [0] * len(stride)
        geometry = (stride, padding, dilation, False, zeros, groups)
        ctx.settings = (known, dtype, None if bias is None else bias.shape, geometry)
        with torch.autocast(x.device.type, enabled=False):
            return torch.convolution(x, standardized, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        known, dtype, bias_shape, geometry = ctx.settings
        mask = list(ctx.needs_input_grad[:3])
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, _standardized(weight, known, dtype), bias_shape, *geometry, mask
        )
        if mask[1]:
            grad_weight = _weight_gradient(grad_weight, weight, known)
        return grad_x, grad_weight, grad_bias, None, None, None
