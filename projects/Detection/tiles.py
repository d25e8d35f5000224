"""Detect on large images tile by tile."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from pycocotools import mask as rle
from torchvision.ops import batched_nms

from gnws_d2 import Predictor
from gnws_d2.errors import ConfigError
from gnws_d2.projects.detection.drawing import MIN_DRAWN, to_cpu
from gnws_d2.projects.own_data import tile_windows

SAME, COARSE = 0.5, 0.3  # intersection over union of an object twice, and once shrunk
AT_EDGE = 0.01  # of a tile: so near an edge, an object is cut by it
MOST_MASKS = 1 << 29  # pixels of the masks of a part; an image that is drawn enlarged is one part


def detect_in_tiles(
    predictor: Predictor, image: np.ndarray, side: int, overlap: float
) -> Iterator[dict[str, Any]]:
    """Detect on tiles of ``side`` pixels, but for what they cut: objects up to ``overlap``, a part
    of the side, are whole in one. Larger ones are also looked for in the whole image, shrunk to the
    size of a tile; what a tile has found counts there. An image no larger than a tile is one.
    Yields the output for the image in parts whose masks fit into memory.
    """
    size = height, width = image.shape[:2]
    windows = tile_windows(width, height, side, overlap + 2 * AT_EDGE)
    if len(windows) == 1:
        return (yield predictor(image))
    small = [max(1, n * side // max(size)) for n in (width, height)]
    shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA).reshape(*small[::-1], -1)
    whole, parts, masks = (0, 0, width, height), [], []
    views = [(image[y:y2, x:x2], (x, y, x2, y2), 0.0) for x, y, x2, y2 in windows]
    for pixels, window, least in [*views, (shrunk, whole, overlap * side)]:
        output = to_cpu(predictor(pixels))
        if set(output) != {"instances"}:
            raise ConfigError("--tile needs a model that finds objects alone. Leave it out.")
        found, corners = output["instances"], torch.tensor(window)
        zoom = (corners[2:] - corners[:2]) / torch.tensor(pixels.shape[1::-1])
        boxes = found.pred_boxes.tensor * zoom.repeat(2) + corners[:2].repeat(2)
        near = ((boxes - corners).abs() < AT_EDGE * side) & (corners != torch.tensor(whole))
        kept = ~near.any(1) & ((boxes[:, 2:] - boxes[:, :2]).amax(1) > least)
        if window == whole:  # what a tile has found is not counted again
            fine = Instances.cat(parts)
            known = pairwise_iou(Boxes(boxes), fine.pred_boxes) > COARSE
            kept &= ~(known & (found.pred_classes[:, None] == fine.pred_classes)).any(1)
        moved = Instances(size, **found[kept].get_fields())
        moved.pred_boxes = Boxes(boxes[kept])
        if moved.has("pred_keypoints"):
            moved.pred_keypoints[..., :2] = moved.pred_keypoints[..., :2] * zoom + corners[:2]
        if moved.has("pred_masks"):
            dense = np.asarray(moved.pred_masks, np.uint8)
            masks += [(rle.encode(np.asfortranarray(mask)), window) for mask in dense]
            moved.remove("pred_masks")
        parts.append(moved)
    found = Instances.cat(parts)
    best = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, SAME)
    most = len(best) if min(size) < MIN_DRAWN else MOST_MASKS // (height * width)
    for some in best.split(most or 1):
        part = found[some]
        if masks:
            part.pred_masks = torch.zeros((len(some), *size), dtype=torch.bool)
            chosen = [masks[k] for k in some.tolist()]
            for mask, (code, (x, y, x2, y2)) in zip(part.pred_masks, chosen, strict=True):
                seen = cv2.resize(rle.decode(code), (x2 - x, y2 - y), None, 0, 0, cv2.INTER_NEAREST)
                mask[y:y2, x:x2] = torch.from_numpy(seen)
        yield {"instances": part}
