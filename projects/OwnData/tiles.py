"""Tiles of large images, and what they show of annotated objects."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

SLIVER = 0.1  # of its box: an object of which a tile shows less is left out
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


def cut(
    annotations: Sequence[dict[str, Any]], image: dict[str, Any], window: Window
) -> Iterator[dict[str, Any]]:
    """What a window of an image shows of its checked annotations, in pixels of the window. A mask
    that is cut becomes RLE, and the box encloses what is seen of it; keypoints outside become
    unlabeled. An object is left out where less than a tenth of its box is seen, a crowd is not.
    """
    x, y, right, bottom = window
    for annotation in annotations:
        (left, top, w, h), mask = annotation["bbox"], annotation.get("segmentation")
        whole = np.array([left, top, left + w, top + h], float) - [x, y, x, y]
        seen = whole.clip(0, [right - x, bottom - y] * 2)
        sides = seen[2:] - seen[:2]
        if sides.prod() <= SLIVER * w * h * (1 - annotation["iscrowd"]):
            continue
        made = {**annotation, "bbox": [*seen[:2].tolist(), *sides.tolist()]}
        if (is_whole := (seen == whole).all()) and isinstance(mask, list):
            made["segmentation"] = [[v - (x, y)[i % 2] for i, v in enumerate(p)] for p in mask]
        elif mask:
            if isinstance(mask, list) or isinstance(mask["counts"], list):
                mask = mask_util.frPyObjects(mask, int(image["height"]), int(image["width"]))
            pixels = mask_util.decode(mask if isinstance(mask, list) else [mask]).any(2)
            part = mask_util.encode(np.asfortranarray(pixels[y:bottom, x:right], np.uint8))
            if not (area := int(mask_util.area(part))):
                continue
            made["segmentation"] = {**part, "counts": part["counts"].decode()}
            made |= {"bbox": mask_util.toBbox(part).tolist(), "area": area}
        elif not is_whole:
            made["area"] = float(sides.prod())
        if points := annotation.get("keypoints"):
            moved = np.reshape(points, (-1, 3)) - (x, y, 0)
            is_in = (moved[:, :2] >= 0) & (moved[:, :2] < (right - x, bottom - y))
            moved *= is_in.all(1, keepdims=True)
            made["keypoints"] = moved.ravel().tolist()
            made["num_keypoints"] = int((moved[:, 2] > 0).sum())
        yield made
