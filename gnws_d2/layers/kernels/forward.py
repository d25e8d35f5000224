"""y = relu(group_norm(x) + residual) in Triton: one read of x for the moments, one for the result.

The moments are those of Welford, pixel after pixel in each lane of a tile, merged as Chan et al.
do: nothing cancels where the mean is large against the deviation, as E[x^2] - E[x]^2 would.
"""

# mypy: disallow-untyped-defs=False
# Triton's kernels have types of their own.

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

from .layout import Tiles, format_of, warps_for


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    num_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`gnws_d2.layers.kernels.stock.forward`."""
    x = x.contiguous(memory_format=format_of(x))
    tiles = Tiles.of(x, num_groups)
    partial = x.new_empty(tiles.partials, dtype=torch.float32)
    mean = x.new_empty((len(x), num_groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    merged = tiles.merged_block(num_groups)
    with device_of(x):
        _partial_moments[tiles.partial_grid](
            *(x, partial, tiles.channels, tiles.pixels, tiles.chunk),
            *(tiles.stride_c, tiles.stride_p, tiles.block_c, tiles.block_p),
        )
        _merge_moments[(len(x) * num_groups,)](
            *(partial, mean, rstd, eps, tiles.channels // num_groups, tiles.pixels, tiles.chunk),
            *(tiles.splits, merged),
            num_warps=warps_for(merged),
        )
    return normalize(x, weight, bias, residual, mean, rstd, eps), mean, rstd


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """See :func:`gnws_d2.layers.kernels.stock.normalize`."""
    num_groups = mean.shape[1]
    x = x.contiguous(memory_format=format_of(x))
    y = torch.empty_like(x)
    weight, bias = weight.contiguous(), bias.contiguous()
    if residual is not None:
        residual = residual.contiguous(memory_format=format_of(x))
    tiles = Tiles.of(x, num_groups)
    with device_of(x):
        _normalize[tiles.pointwise_grid](
            *(x, x if residual is None else residual, weight, bias, mean, rstd, y),
            *(tiles.channels, tiles.pixels, tiles.channels // num_groups),
            *(tiles.stride_c, tiles.stride_p, residual is not None, tiles.block_c, tiles.block_p),
        )
    return y


def device_of(x: torch.Tensor) -> Any:
    """Where Triton is to launch, which by itself takes the current GPU."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


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


# Sizes that are 1 or a multiple of 16 are worth no kernels of their own.
@triton.jit(do_not_specialize=["channels_per_group", "pixels", "chunk", "splits"])
def _merge_moments(
    partial,
    mean,
    rstd,
    eps,
    channels_per_group,
    pixels,
    chunk,
    splits,
    BLOCK: tl.constexpr,
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
    value = affine(value, center, scale, shift)
    if ADD:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    # Not tl.maximum, which makes 0 of NaN: a diverging training has to be seen.
    tl.store(y + at, tl.where(value <= 0, 0.0, value), mask=inside)


@triton.jit
def affine(value, center, scale, shift):
    """What ReLU is applied to; in backward again, where it has to round alike."""
    return (value - center[:, None]) * scale[:, None] + shift[:, None]
