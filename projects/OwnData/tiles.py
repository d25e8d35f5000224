"""Tiles of large images, and what is seen in them of annotated objects."""

from __future__ import annotations

import math

Window = tuple[int, int, int, int]  # left, top, right and bottom, in pixels


def tile_windows(width: int, height: int, side: int, overlap: float) -> list[Window]:
    """Squares of ``side`` pixels that cover an image, row by row; none reaches beyond it. Neighbors
    share ``overlap`` of their side or more, so that objects up to this size are whole in one."""
    lefts, tops = (
        [n * (length - side) // steps for n in range(steps)] + [max(0, length - side)]
        for length in (width, height)
        for steps in [math.ceil(max(0, length - side) / max(1, int(side * (1 - overlap))))]
    )
    return [(x, y, min(x + side, width), min(y + side, height)) for y in tops for x in lefts]
