"""How the tensors of GroupNorm + ReLU lie in memory, and how a GPU's programs share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Elements that a program holds in registers at a time, and programs that fill a large GPU several
# times over (an H200 has 132 multiprocessors). Chosen by reasoning, not measured yet.
TILE = 2048
PROGRAMS = 1024
# Partial results of a group that one program merges.
MERGED = 4096


def format_of(x: torch.Tensor) -> torch.memory_format:
    """channels_last where ``x`` has that format and is not contiguous as well. A tensor of neither
    format counts as contiguous, and is copied."""
    if (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    ):
        return torch.channels_last
    return torch.contiguous_format


def statistics_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True)
class Tiles:
    """The division of an input (N, C, *) in tiles of ``block_c`` channels x ``block_p`` pixels.

    What is summed over an image is first summed over ``splits`` runs of ``chunk`` pixels, so that a
    single image also occupies the whole GPU, and the partial sums are added by a second kernel in
    a fixed order: the same input gives the same bits.

    Attributes:
        images, channels, pixels: the sizes of the input.
        stride_c, stride_p: elements from one channel, and one pixel, to the next.
    """

    images: int
    channels: int
    pixels: int
    stride_c: int
    stride_p: int
    block_c: int
    block_p: int
    splits: int
    chunk: int

    @classmethod
    def of(cls, x: torch.Tensor, num_groups: int) -> Tiles:
        """Of a tensor that is dense in its :func:`format_of`, and not empty."""
        images, channels = x.shape[:2]
        pixels = x.numel() // (images * channels)
        if format_of(x) is torch.channels_last:
            stride_c, stride_p = 1, channels
            block_c = min(_power_of_2(channels), 64)
            block_p = min(_power_of_2(pixels), TILE // block_c)
        else:
            stride_c, stride_p = pixels, 1
            block_p = min(_power_of_2(pixels), TILE // 2)
            block_c = min(_power_of_2(channels), TILE // block_p)
        tiles = _divide(pixels, block_p)
        wanted = _divide(PROGRAMS, images * _divide(channels, block_c))
        most = max(1, MERGED // _power_of_2(channels // num_groups))
        chunk = _divide(tiles, min(wanted, most, tiles)) * block_p
        splits = _divide(pixels, chunk)
        sizes = (images, channels, pixels, stride_c, stride_p)
        return cls(*sizes, block_c, block_p, splits, chunk)

    @property
    def partial_grid(self) -> tuple[int, int, int]:
        """Programs of a kernel that sums: splits, blocks of channels, images."""
        return self.splits, _divide(self.channels, self.block_c), self.images

    @property
    def pointwise_grid(self) -> tuple[int, int, int]:
        """Programs of a kernel that treats each element by itself, one tile each. Blocks of pixels
        come first, since the other axes of CUDA's grid end at 65535."""
        blocks_p = _divide(self.pixels, self.block_p)
        return blocks_p, _divide(self.channels, self.block_c), self.images

    @property
    def partials(self) -> tuple[int, int, int, int]:
        """The shape of two partial results per image, channel and split."""
        return 2, self.images, self.channels, self.splits

    def merged_block(self, num_groups: int) -> int:
        """The power of 2 that holds the partial results of one group."""
        return _power_of_2(self.channels // num_groups * self.splits)


def warps_for(block: int) -> int:
    """Of a program that holds so many numbers at a time: 8 a thread, and 8 warps at most."""
    return max(1, min(block // 256, 8))


def _divide(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def _power_of_2(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()
