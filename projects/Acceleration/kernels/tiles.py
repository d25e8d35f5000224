"""How a GPU's programs share the tensors of GroupNorm + ReLU."""

from __future__ import annotations

import torch
from triton import cdiv, next_power_of_2

from .torch_kernels import format_of

# Elements that a program holds in registers at a time, and programs that fill a large GPU several
# times over (an H200 has 132 multiprocessors). Chosen by reasoning, not measured yet.
TILE = 2048
PROGRAMS = 1024
# Partial results of a group that one program merges.
MERGED = 4096


class Tiles:
    """The division of ``x`` (N, C, *) in tiles of ``block_c`` channels x ``block_p`` pixels.

    What is summed over an image is first summed over ``splits`` runs of ``chunk`` pixels, so that a
    single image also occupies the whole GPU, and the partial sums are added by a second kernel in
    a fixed order: the same input gives the same bits.

    Args:
        x: dense in its :func:`format_of`, and not empty.
        num_groups: a divisor of C.

    Attributes:
        images, channels, pixels: the sizes of the input.
        stride_c, stride_p: elements from one channel, and one pixel, to the next.
        partials: the shape of two partial results per image, channel and split.
        partial_grid: programs of a kernel that sums: splits, blocks of channels, images.
        pointwise_grid: programs of a kernel that treats each element by itself, one tile each.
            Blocks of pixels come first, since the other axes of CUDA's grid end at 65535.
    """

    def __init__(self, x: torch.Tensor, num_groups: int) -> None:
        self.images, self.channels = x.shape[:2]
        self.pixels = x.numel() // (self.images * self.channels)
        if format_of(x) is torch.channels_last:
            self.stride_c, self.stride_p = 1, self.channels
            self.block_c = min(next_power_of_2(self.channels), 64)
            self.block_p = min(next_power_of_2(self.pixels), TILE // self.block_c)
        else:
            self.stride_c, self.stride_p = self.pixels, 1
            self.block_p = min(next_power_of_2(self.pixels), TILE // 2)
            self.block_c = min(next_power_of_2(self.channels), TILE // self.block_p)
        tiles = cdiv(self.pixels, self.block_p)
        blocks_c = cdiv(self.channels, self.block_c)
        wanted = cdiv(PROGRAMS, self.images * blocks_c)
        most = max(1, MERGED // next_power_of_2(self.channels // num_groups))
        self.chunk = cdiv(tiles, min(wanted, most, tiles)) * self.block_p
        self.splits = cdiv(self.pixels, self.chunk)
        self.partials = 2, self.images, self.channels, self.splits
        self.partial_grid = self.splits, blocks_c, self.images
        self.pointwise_grid = tiles, blocks_c, self.images
