"""From scenes to the entries of a COCO annotation file."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from .scans import CLASSES
from .scene import SIZE, Digit

# The outermost points of a digit, the keypoints that every class has.
KEYPOINTS = ("top", "bottom", "left", "right")


def categories() -> list[dict[str, Any]]:
    """List the COCO categories; ids begin at 1, as Detectron2 expects of a COCO file."""
    common = {"supercategory": "digit", "keypoints": list(KEYPOINTS), "skeleton": []}
    return [{"id": i + 1, "name": name, **common} for i, name in enumerate(CLASSES)]


def keypoints(mask: np.ndarray) -> list[float]:
    """The outermost pixels of a mask: [x, y, 2, ...] for :data:`KEYPOINTS`, 2 meaning visible.

    Of several pixels equally far out, the middle one.
    """
    ys, xs = np.nonzero(mask)
    points = []
    for along, extreme in ((ys, ys.min()), (ys, ys.max()), (xs, xs.min()), (xs, xs.max())):
        outermost = np.flatnonzero(along == extreme)
        middle = outermost[len(outermost) // 2]
        points += [float(xs[middle]), float(ys[middle]), 2]
    return points


def semantic(digits: list[Digit]) -> np.ndarray:
    """(SIZE, SIZE) uint8: 0 where there is ground, and class + 1 where there is a digit."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for digit in digits:
        labels[digit.mask] = digit.label + 1
    return labels


def outline(mask: np.ndarray) -> list[float] | None:
    """Trace the border of a mask along the edges of its pixels.

    Args:
        mask: (H, W) bool.

    Returns:
        Corners [x0, y0, x1, y1, ...] in pixels, (0, 0) being the top left corner of the top left
        pixel; None where one closed line does not describe the mask: it has holes, more than one
        part, or parts that only touch at a corner.
    """
    # Pixels are numbered along the rows of the padded mask, and a corner like the pixel whose top
    # left corner it is.
    padded = np.pad(mask, 1)
    width = padded.shape[1]
    flat = padded.ravel()
    pixels = np.flatnonzero(flat)
    # For each side of a pixel: its neighbour there, and the way along that side that keeps the
    # pixel on the right.
    sides = ((-width, 0, 1), (1, 1, width + 1), (width, width + 1, width), (-1, width, 0))
    starts: list[int] = []
    ends: list[int] = []
    for neighbour, start, end in sides:
        border = pixels[~flat[pixels + neighbour]]
        starts += (border + start).tolist()
        ends += (border + end).tolist()
    following = dict(zip(starts, ends, strict=True))
    if not following or len(following) < len(starts):  # empty, or two ways on from one corner
        return None
    path = [starts[0]]
    while (corner := following[path[-1]]) != path[0]:
        path.append(corner)
    if len(path) < len(starts):
        return None
    corners = np.array(path)
    steps = np.diff(corners, prepend=corners[-1])
    corners = corners[steps != np.roll(steps, -1)]  # where the line turns
    # As floats: Detectron2 scales a polygon's coordinates in place, in the type they have.
    points = np.stack([corners % width - 1, corners // width - 1], axis=1).astype(float)
    return points.ravel().tolist()


def segmentation(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """Describe a mask for COCO: by a polygon where that is exact, else as compressed RLE."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    polygon = outline(mask)
    if polygon is not None and mask_util.frPyObjects([polygon], *mask.shape) == [rle]:
        return [polygon]
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def annotation(digit: Digit) -> dict[str, Any]:
    """Describe a digit for COCO, without the ids of the annotation and of its image.

    ``bbox`` is [x, y, width, height] in pixels, tight around the visible mask; ``scan`` is not of
    COCO, it names the scan that the digit was made from.
    """
    ys, xs = np.flatnonzero(digit.mask.any(axis=1)), np.flatnonzero(digit.mask.any(axis=0))
    box = [xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0]]
    return {
        "category_id": digit.label + 1,
        "bbox": [float(v) for v in box],
        "area": int(digit.mask.sum()),
        "iscrowd": 0,
        "segmentation": segmentation(digit.mask),
        "keypoints": keypoints(digit.mask),
        "num_keypoints": len(KEYPOINTS),
        "scan": digit.scan,
    }
