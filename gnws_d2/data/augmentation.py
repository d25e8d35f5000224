"""What INPUT.AUGMENTATION and INPUT.ANY_WAY_UP add to Detectron2's resize and flip."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import filter_empty_instances
from detectron2.structures import BitMasks, BoxMode, Instances
from PIL import Image

COLORS = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
# How far factors of colors are from 1; the least factor of the size; the least side of a crop.
LEVELS = {"light": (0.2, 1.0, 1.0), "medium": (0.3, 0.7, 0.67), "strong": (0.5, 0.5, 0.5)}


def augment(cfg: CfgNode, augmentations: list[Any]) -> list[Any]:
    """``augmentations`` for training, of uint8 images, and what the two keys ask for."""
    # No mirror images, whose left and right keypoints only Detectron2's horizontal flip exchanges.
    turn = T.RandomRotation([0, 90, 180, 270], sample_style="choice")
    one_channel = T.ColorTransform(np.atleast_3d)  # OpenCV drops its axis
    more: list[Any] = [turn, one_channel] * cfg.INPUT.ANY_WAY_UP
    if cfg.INPUT.AUGMENTATION:
        spread, least, side = LEVELS[cfg.INPUT.AUGMENTATION]
        kinds = {"L": 2, "RGB": 3, "BGR": 3}.get(cfg.INPUT.FORMAT, 0)  # others are more than colors
        rgb = [T.ColorTransform(lambda image: image[..., ::-1])] * (cfg.INPUT.FORMAT == "BGR")
        more += [*rgb, *(kind(1 - spread, 1 + spread) for kind in COLORS[:kinds]), *rgb]
        if least < 1:
            sizes = (round(least * min(cfg.INPUT.MIN_SIZE_TRAIN)), max(cfg.INPUT.MIN_SIZE_TRAIN))
            resize = T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, "range")
            sized = [resize if isinstance(a, T.ResizeShortestEdge) else a for a in augmentations]
            augmentations = [T.RandomApply(Crop("relative_range", (side, side)), 0.5), *sized]
    return [*augmentations, *more]


class Crop(T.RandomCrop):
    """Without shapely: polygons reach beyond the image, where no loss looks."""

    def get_transform(self, image: np.ndarray) -> T.ExtentTransform:
        crop = super().get_transform(image)
        window = (crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h)
        return T.ExtentTransform(window, (crop.h, crop.w), Image.Resampling.NEAREST)


def drop_slivers(objects: list[dict[str, Any]], transforms: T.TransformList, size: Any) -> None:
    """Keep ``objects`` that an image of ``size`` (height, width) shows a tenth of the box of."""
    boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    whole = transforms.apply_box(np.array(boxes, float)).reshape(-1, 2, 2)
    seen, area = (np.diff(c, axis=1).prod((1, 2)) for c in (whole.clip(0, size[::-1]), whole))
    objects[:] = [o for o, is_kept in zip(objects, seen >= 0.1 * area, strict=True) if is_kept]


def tightened(cut: Instances) -> Instances:
    """With boxes that end at an edge of the image around what it shows of their masks."""
    size, boxes = cut.image_size, cut.gt_boxes.tensor
    at_edge = ((boxes <= 0) | (boxes >= boxes.new_tensor([*size[::-1]] * 2))).any(1)
    if cut.has("gt_masks"):
        cuts = cut.gt_masks[at_edge]
        masks = cuts if isinstance(cuts, BitMasks) else BitMasks.from_polygon_masks(cuts, *size)
        boxes[at_edge] = masks.get_bounding_boxes().tensor
    return filter_empty_instances(cut)
