"""Weight Standardization and its gradient in Triton: one launch each, a program for each filter.

With n the fan-in, c the centered weight, s its deviation, r = 1 / (s + eps) and g the gradient of
the standardized weight r c:

    dw = r (g - mean(g)) - c r^2 sum(g c) / ((n - 1) s),     second term 0 where s = 0.
"""

# mypy: disallow-untyped-defs=False
# Triton's kernels have types of their own.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .forward import device_of
from .layout import format_of, warps_for

# Numbers of a filter that a program holds in registers at a time. A larger filter is read in parts,
# and each time but the first from the cache. Chosen by reasoning, not measured yet.
MOST = 4096


def standardize(
    weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(w - mean) / (std + eps)`` of each filter, and its moments. The same bits each time.

    Args:
        weight: (C_out, ...), float32, float16 or bfloat16, not empty, with a fan-in above 1.
        eps: added to the unbiased standard deviation.
        dtype: that of the standardized weight.

    Returns:
        The standardized weight in the memory format of ``weight``; mean and std, (C_out, 1, ...),
        in float32.
    """
    weight = weight.contiguous(memory_format=format_of(weight))
    standardized = torch.empty_like(weight, dtype=dtype)
    mean = weight.new_empty((len(weight),) + (1,) * (weight.dim() - 1), dtype=torch.float32)
    std = torch.empty_like(mean)
    fan_in, block, warps = _division(weight)
    with device_of(weight):
        _standardize[(len(weight),)](
            weight, standardized, mean, std, eps, fan_in, block, num_warps=warps
        )
    return standardized, mean, std


def weight_gradient(
    grad: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, eps: float
) -> torch.Tensor:
    """The gradient of ``weight``, in its dtype, from that of its standardized form, in any; the
    others as :func:`standardize` takes and gives them."""
    weight = weight.contiguous(memory_format=format_of(weight))
    grad = grad.contiguous(memory_format=format_of(weight))
    grad_weight = torch.empty_like(weight)
    fan_in, block, warps = _division(weight)
    with device_of(weight):
        _weight_gradient[(len(weight),)](
            grad, weight, mean, std, grad_weight, eps, fan_in, block, num_warps=warps
        )
    return grad_weight


def _division(weight: torch.Tensor) -> tuple[int, int, int]:
    """The fan-in, the numbers of it that are treated at a time, and the warps that do it."""
    fan_in = weight[0].numel()
    block = min(triton.next_power_of_2(fan_in), MOST)
    return fan_in, block, warps_for(block)


@triton.jit
def _standardize(weight, standardized, mean, std, eps, fan_in, BLOCK: tl.constexpr):
    filter = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    weight += filter * fan_in
    standardized += filter * fan_in
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, fan_in, BLOCK):
        inside = start + lanes < fan_in
        total += tl.load(weight + start + lanes, mask=inside, other=0.0).to(tl.float32)
    center = tl.sum(total, axis=0) / fan_in
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, fan_in, BLOCK):
        inside = start + lanes < fan_in
        value = tl.load(weight + start + lanes, mask=inside, other=0.0).to(tl.float32)
        centered = tl.where(inside, value - center, 0.0)
        square += centered * centered
    deviation = tl.sqrt_rn(tl.sum(square, axis=0) / (fan_in - 1))
    scale = 1.0 / (deviation + eps)
    for start in range(0, fan_in, BLOCK):
        inside = start + lanes < fan_in
        value = tl.load(weight + start + lanes, mask=inside, other=0.0).to(tl.float32)
        tl.store(standardized + start + lanes, (value - center) * scale, mask=inside)
    one = filter + tl.arange(0, 1)
    tl.store(mean + one, center)
    tl.store(std + one, deviation)


@triton.jit
def _weight_gradient(grad, weight, mean, std, grad_weight, eps, fan_in, BLOCK: tl.constexpr):
    filter = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    grad += filter * fan_in
    weight += filter * fan_in
    grad_weight += filter * fan_in
    center = tl.load(mean + filter)
    deviation = tl.load(std + filter)
    sum_g = tl.zeros((BLOCK,), tl.float32)
    sum_gc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, fan_in, BLOCK):
        inside = start + lanes < fan_in
        g = tl.load(grad + start + lanes, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(weight + start + lanes, mask=inside, other=0.0).to(tl.float32)
        sum_g += g
        sum_gc += g * (value - center)  # g is 0 beyond the end
    mean_g = tl.sum(sum_g, axis=0) / fan_in
    scale = 1.0 / (deviation + eps)
    slope = tl.sum(sum_gc, axis=0) / deviation / (fan_in - 1) * scale
    slope = tl.where(deviation == 0, 0.0, slope)
    for start in range(0, fan_in, BLOCK):
        inside = start + lanes < fan_in
        g = tl.load(grad + start + lanes, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(weight + start + lanes, mask=inside, other=0.0).to(tl.float32)
        result = (g - mean_g - (value - center) * slope) * scale
        tl.store(grad_weight + start + lanes, result, mask=inside)
