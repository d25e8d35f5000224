"""From digits in an image to the entries of a COCO annotation file."""

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


def annotation(digit: Digit) -> dict[str, Any]:
    """Describe a digit for COCO, without the ids of the annotation and of its image.

    ``bbox`` is [x, y, width, height] in pixels, tight around the visible mask. ``scan`` is not
    part of COCO; it names the scan that the digit was made from.
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


def segmentation(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask, (H, W) bool, as COCO's compressed RLE, its counts as a string for JSON."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


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
    """(SIZE, SIZE) uint8: 0 for background and class + 1 for a digit."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for digit in digits:
        labels[digit.mask] = digit.label + 1
    return labels
