"""y = relu(group_norm(x) + residual) and its gradient in Triton.

Forward reads x once for the moments and once for the result. The moments are computed by Welford's
method, pixel after pixel in each lane of a tile, and merged by that of Chan et al.: unlike
E[x^2] - E[x]^2, nothing cancels where the mean is large against the deviation.

Backward is one pass for the sums and one for the result. With g the gradient where y > 0 and 0
elsewhere, h = (x - mean) rstd, and m elements in a group,

    dbias = sum(g),     dweight = sum(g h)                             over images and pixels,
    dx = rstd (weight g - (sum(weight g) + h sum(weight g h)) / m)     sums over the group.
"""

# mypy: disallow-untyped-defs=False
# Triton's kernels have types of their own.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .tiles import Tiles
from .torch_kernels import format_of


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    num_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`.torch_kernels.forward`."""
    x = x.contiguous(memory_format=format_of(x))
    tiles = Tiles(x, num_groups)
    partial = x.new_empty(tiles.partials, dtype=torch.float32)
    mean = x.new_empty((len(x), num_groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    merged = triton.next_power_of_2(tiles.channels // num_groups * tiles.splits)
    with torch.cuda.device_of(x):  # by itself, Triton launches on the current GPU
        _partial_moments[tiles.partial_grid](
            *(x, partial, tiles.channels, tiles.pixels, tiles.chunk),
            *(tiles.stride_c, tiles.stride_p, tiles.block_c, tiles.block_p),
        )
        _merge_moments[(len(x) * num_groups,)](
            *(partial, mean, rstd, eps, tiles.channels // num_groups, tiles.pixels, tiles.chunk),
            *(tiles.splits, merged),
            num_warps=max(1, min(merged // 256, 8)),  # each thread holds 8 partial results
        )
    return normalize(x, weight, bias, mean, rstd, eps, residual), mean, rstd


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """See :func:`.torch_kernels.normalize`."""
    num_groups = mean.shape[1]
    x = x.contiguous(memory_format=format_of(x))
    y = torch.empty_like(x)
    weight, bias = weight.contiguous(), bias.contiguous()
    if residual is not None:
        residual = residual.contiguous(memory_format=format_of(x))
    tiles = Tiles(x, num_groups)
    with torch.cuda.device_of(x):
        _normalize[tiles.pointwise_grid](
            *(x, x if residual is None else residual, weight, bias, mean, rstd, y),
            *(tiles.channels, tiles.pixels, tiles.channels // num_groups),
            *(tiles.stride_c, tiles.stride_p, residual is not None, tiles.block_c, tiles.block_p),
        )
    return y


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
    """See :func:`.torch_kernels.backward`."""
    num_groups = mean.shape[1]
    per_group = x.shape[1] // num_groups
    x = x.contiguous(memory_format=format_of(x))
    grad = grad.contiguous(memory_format=format_of(x))
    weight, bias = weight.contiguous(), bias.contiguous()
    grad_x = torch.empty_like(x)
    grad_residual = grad.new_empty(0)
    if y is not None:
        y = y.contiguous(memory_format=format_of(x))
        grad_residual = torch.empty_like(grad)
    tiles = Tiles(x, num_groups)
    partial = x.new_empty(tiles.partials, dtype=torch.float32)
    sizes = (tiles.channels, tiles.pixels, per_group)
    layout = (tiles.stride_c, tiles.stride_p)
    blocks = (y is not None, tiles.block_c, tiles.block_p)
    with torch.cuda.device_of(x):
        _partial_sums[tiles.partial_grid](
            *(grad, x, weight, bias, x if y is None else y, mean, rstd, grad_residual, partial),
            *(*sizes, tiles.chunk, *layout, *blocks),
        )
        of_channel = partial.sum(3)
        of_group = (of_channel * weight).view(2, len(x), num_groups, per_group).sum(3)
        # The gradient of the residual is masked already.
        _input_gradient[tiles.pointwise_grid](
            *(grad if y is None else grad_residual, x, weight, bias, mean, rstd, of_group, grad_x),
            *(*sizes, *layout, *blocks),
        )
    # Two sums, since results of an operator may not share memory.
    grad_bias, grad_weight = (sums.sum(0) for sums in of_channel)
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_residual


@triton.jit
def _partial_moments(
    x,
    partial,
    channels,
    pixels,
    chunk,
    stride_c,
    stride_p,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Mean, and sum of squared deviations from it, per image, channel and split."""
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = tl.program_id(0) * chunk
    end = tl.minimum(start + chunk, pixels)
    x += image * channels * pixels
    lanes = tl.arange(0, BLOCK_P)
    mean = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    square = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for i in range(0, tl.cdiv(end - start, BLOCK_P)):
        p = start + i * BLOCK_P + lanes
        inside = (c < channels)[:, None] & (p < end)[None, :]
        offset = c[:, None] * stride_c + p[None, :] * stride_p
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        # A lane ends before another by at most its last pixel, so that i + 1 is its count.
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta * (1.0 / (i + 1))  # one division for all lanes
        square += delta * (value - mean)
    count = ((end - start - lanes + BLOCK_P - 1) // BLOCK_P).to(tl.float32)
    mean, square = _merge(mean, square, count[None, :], (end - start).to(tl.float32))
    # (2, images, channels, splits)
    at = (image * channels + c) * tl.num_programs(0) + tl.program_id(0)
    size = tl.num_programs(2).to(tl.int64) * channels * tl.num_programs(0)
    tl.store(partial + at, mean, mask=c < channels)
    tl.store(partial + size + at, square, mask=c < channels)


@triton.jit
def _merge(mean, square, count, total):
    """The moments of the union of parts, which lie along the second axis."""
    merged = tl.sum(mean * count, axis=1) / total
    # The rounding of that sum grows with the mean; what is left of it does not.
    merged += tl.sum((mean - merged[:, None]) * count, axis=1) / total
    # Squared, a large mean may be infinite, and times a count of 0 not a number.
    away = tl.where(count > 0, mean - merged[:, None], 0.0)
    return merged, tl.sum(square + away * away * count, axis=1)


# Not specialized: sizes of 1 or a multiple of 16 are not worth kernels of their own.
@triton.jit(do_not_specialize=["channels_per_group", "pixels", "chunk", "splits"])
def _merge_moments(
    partial, mean, rstd, eps, channels_per_group, pixels, chunk, splits, BLOCK: tl.constexpr
):
    """Mean and 1 / deviation of each image and group, whose partial moments lie side by side."""
    group = tl.program_id(0).to(tl.int64)  # of all images
    parts = channels_per_group * splits
    i = tl.arange(0, BLOCK)
    at = group * parts + i
    size = tl.num_programs(0).to(tl.int64) * parts
    means = tl.load(partial + at, mask=i < parts, other=0.0)
    squares = tl.load(partial + size + at, mask=i < parts, other=0.0)
    count = tl.minimum(pixels - i % splits * chunk, chunk)
    count = tl.where(i < parts, count, 0).to(tl.float32)
    total = 1.0 * channels_per_group * pixels
    merged, square = _merge(means[None, :], squares[None, :], count[None, :], total)
    one = group + tl.arange(0, 1)
    tl.store(mean + one, merged)
    tl.store(rstd + one, 1.0 / tl.sqrt_rn(square / total + eps))


@triton.jit
def _normalize(
    x,
    residual,
    weight,
    bias,
    mean,
    rstd,
    y,
    channels,
    pixels,
    channels_per_group,
    stride_c,
    stride_p,
    ADD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < channels)[:, None] & (p < pixels)[None, :]
    x += image * channels * pixels
    residual += image * channels * pixels
    y += image * channels * pixels
    at = c[:, None] * stride_c + p[None, :] * stride_p
    of_group = image * (channels // channels_per_group) + c // channels_per_group
    center = tl.load(mean + of_group, mask=c < channels, other=0.0)
    scale = tl.load(rstd + of_group, mask=c < channels, other=0.0)
    scale *= tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = _affine(value, center, scale, shift)
    if ADD:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    # Not tl.maximum, which makes 0 of NaN: a diverging training has to be seen.
    tl.store(y + at, tl.where(value <= 0, 0.0, value), mask=inside)


@triton.jit
def _affine(value, center, scale, shift):
    """What ReLU is applied to. Backward computes it again and must round the same."""
    return (value - center[:, None]) * scale[:, None] + shift[:, None]


@triton.jit
def _partial_sums(
    grad,
    x,
    weight,
    bias,
    y,
    mean,
    rstd,
    grad_residual,
    partial,
    channels,
    pixels,
    channels_per_group,
    chunk,
    stride_c,
    stride_p,
    ADDED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """sum(g) and sum(g h) per image, channel and split. Where a residual was added, its gradient,
    which is g, is written on the way."""
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = tl.program_id(0) * chunk
    end = tl.minimum(start + chunk, pixels)
    grad += image * channels * pixels
    x += image * channels * pixels
    y += image * channels * pixels
    grad_residual += image * channels * pixels
    of_group = image * (channels // channels_per_group) + c // channels_per_group
    center = tl.load(mean + of_group, mask=c < channels, other=0.0)
    scale = tl.load(rstd + of_group, mask=c < channels, other=0.0)
    factor = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    sum_g = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    sum_gh = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for i in range(0, tl.cdiv(end - start, BLOCK_P)):
        p = start + i * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = (c < channels)[:, None] & (p < end)[None, :]
        at = c[:, None] * stride_c + p[None, :] * stride_p
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if ADDED:
            result = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            g = tl.where(result <= 0, 0.0, g)
            tl.store(grad_residual + at, g, mask=inside)
        else:
            g = tl.where(_affine(value, center, scale * factor, shift) <= 0, 0.0, g)
        sum_g += g
        # h in the lanes beyond the end is not 0, but g is.
        sum_gh += g * ((value - center[:, None]) * scale[:, None])
    at = (image * channels + c) * tl.num_programs(0) + tl.program_id(0)
    size = tl.num_programs(2).to(tl.int64) * channels * tl.num_programs(0)
    tl.store(partial + at, tl.sum(sum_g, axis=1), mask=c < channels)
    tl.store(partial + size + at, tl.sum(sum_gh, axis=1), mask=c < channels)


@triton.jit
def _input_gradient(
    grad,
    x,
    weight,
    bias,
    mean,
    rstd,
    of_group,
    grad_x,
    channels,
    pixels,
    channels_per_group,
    stride_c,
    stride_p,
    MASKED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c < channels)[:, None] & (p < pixels)[None, :]
    grad += image * channels * pixels
    x += image * channels * pixels
    grad_x += image * channels * pixels
    at = c[:, None] * stride_c + p[None, :] * stride_p
    groups = channels // channels_per_group
    group = image * groups + c // channels_per_group
    count = 1.0 * channels_per_group * pixels  # arguments of 1 are Python's numbers here
    center = tl.load(mean + group, mask=c < channels, other=0.0)
    scale = tl.load(rstd + group, mask=c < channels, other=0.0)
    factor = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    mean_g = tl.load(of_group + group, mask=c < channels, other=0.0) / count
    size = tl.num_programs(2).to(tl.int64) * groups
    mean_gh = tl.load(of_group + size + group, mask=c < channels, other=0.0) / count
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if not MASKED:
        shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
        g = tl.where(_affine(value, center, scale * factor, shift) <= 0, 0.0, g)
    h = (value - center[:, None]) * scale[:, None]
    result = g * factor[:, None] - mean_g[:, None] - h * mean_gh[:, None]
    tl.store(grad_x + at, result * scale[:, None], mask=inside)
