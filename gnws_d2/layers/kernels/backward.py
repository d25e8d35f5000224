"""The gradient of GroupNorm + ReLU in Triton: a pass for the sums, and one for the result.

With g the gradient where y > 0 and 0 elsewhere, h = (x - mean) rstd, and m elements in a group,

    dbias = sum(g),     dweight = sum(g h)                             over images and pixels,
    dx = rstd (weight g - (sum(weight g) + h sum(weight g h)) / m)     sums over the group.
"""

# mypy: disallow-untyped-defs=False
# Triton's kernels have types of their own.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .forward import affine, device_of
from .layout import Tiles, format_of, warps_for


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
    """See :func:`gnws_d2.layers.kernels.stock.backward`."""
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
    tiles = Tiles.of(x, num_groups)
    partial = x.new_empty(tiles.partials, dtype=torch.float32)
    of_channel = x.new_empty(tiles.partials[:3], dtype=torch.float32)
    of_group = x.new_empty((2, len(x), num_groups), dtype=torch.float32)
    sizes = (tiles.channels, tiles.pixels, per_group)
    layout = (tiles.stride_c, tiles.stride_p)
    blocks = (y is not None, tiles.block_c, tiles.block_p)
    merged = (triton.next_power_of_2(per_group), triton.next_power_of_2(tiles.splits))
    with device_of(x):
        _partial_sums[tiles.partial_grid](
            *(grad, x, weight, bias, x if y is None else y, mean, rstd, grad_residual, partial),
            *(*sizes, tiles.chunk, *layout, *blocks),
        )
        _merge_sums[(len(x) * num_groups,)](
            *(partial, weight, of_channel, of_group, num_groups, per_group, tiles.splits),
            *merged,
            num_warps=warps_for(merged[0] * merged[1]),
        )
        # That of the residual is masked already.
        _input_gradient[tiles.pointwise_grid](
            *(grad if y is None else grad_residual, x, weight, bias, mean, rstd, of_group, grad_x),
            *(*sizes, *layout, *blocks),
        )
    # Two sums, since results of an operator may not share memory.
    grad_bias, grad_weight = (sums.sum(0) for sums in of_channel)
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_residual


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
            g = tl.where(affine(value, center, scale * factor, shift) <= 0, 0.0, g)
        sum_g += g
        # h in the lanes beyond the end is not 0, but g is.
        sum_gh += g * ((value - center[:, None]) * scale[:, None])
    at = (image * channels + c) * tl.num_programs(0) + tl.program_id(0)
    size = tl.num_programs(2).to(tl.int64) * channels * tl.num_programs(0)
    tl.store(partial + at, tl.sum(sum_g, axis=1), mask=c < channels)
    tl.store(partial + size + at, tl.sum(sum_gh, axis=1), mask=c < channels)


@triton.jit(do_not_specialize=["num_groups", "channels_per_group", "splits"])
def _merge_sums(
    partial,
    weight,
    of_channel,
    of_group,
    num_groups,
    channels_per_group,
    splits,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """sum(g), sum(g h) per image and channel, and, times the weight, per image and group."""
    group = tl.program_id(0).to(tl.int64)  # of all images
    groups = tl.num_programs(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    s = tl.arange(0, BLOCK_S)
    inside = (c < channels_per_group)[:, None] & (s < splits)[None, :]
    at = (group * channels_per_group + c)[:, None] * splits + s[None, :]
    size = groups * channels_per_group
    in_group = c < channels_per_group
    factor = tl.load(
        weight + group % num_groups * channels_per_group + c, mask=in_group, other=0.0
    ).to(tl.float32)
    sum_g = tl.sum(tl.load(partial + at, mask=inside, other=0.0), axis=1)
    sum_gh = tl.sum(tl.load(partial + size * splits + at, mask=inside, other=0.0), axis=1)
    channel = group * channels_per_group + c
    tl.store(of_channel + channel, sum_g, mask=in_group)
    tl.store(of_channel + size + channel, sum_gh, mask=in_group)
    tl.store(of_group + group, tl.sum(sum_g * factor, axis=0))
    tl.store(of_group + groups + group, tl.sum(sum_gh * factor, axis=0))


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
        g = tl.where(affine(value, center, scale * factor, shift) <= 0, 0.0, g)
    h = (value - center[:, None]) * scale[:, None]
    result = g * factor[:, None] - mean_g[:, None] - h * mean_gh[:, None]
    tl.store(grad_x + at, result * scale[:, None], mask=inside)
