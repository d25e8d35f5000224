"""How images are resized: as Detectron2 does it, or as MMDetection does."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import Augmentation, ResizeShortestEdge, ResizeTransform, Transform
from PIL.Image import Resampling


class PlainBilinear(ResizeTransform):
    """Bilinear interpolation between the four nearest pixels, as ``cv2.resize`` does by default.

    Pillow, which Detectron2 uses, averages over more pixels when an image shrinks. OpenCV rounds
    its weights to 1/2048, so a pixel may differ from this by one level.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.dtype != np.uint8 or interp not in (None, Resampling.BILINEAR):
            return super().apply_image(img, interp)
        # Detectron2 resizes float32 with torch, which interpolates between the nearest pixels.
        resized = super().apply_image(img.astype(np.float32), interp)
        return np.rint(resized).astype(np.uint8)


class PlainBilinearShortestEdge(ResizeShortestEdge):
    """``ResizeShortestEdge``, which chooses the size, with :class:`PlainBilinear`."""

    def get_transform(self, image: np.ndarray) -> Transform:
        chosen = super().get_transform(image)
        if not isinstance(chosen, ResizeTransform):
            return chosen  # nothing to do
        return PlainBilinear(chosen.h, chosen.w, chosen.new_h, chosen.new_w)


def build_test_augmentation(cfg: CfgNode) -> list[Augmentation]:
    """Detectron2's augmentation for evaluation, with the resizing of ``INPUT.RESIZE_TEST``."""
    if cfg.INPUT.RESIZE_TEST == "pil":
        return build_augmentation(cfg, is_train=False)
    size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return [PlainBilinearShortestEdge(*size, sample_style="choice")]


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's mapper for training, with the resizing of ``INPUT.RESIZE_TRAIN``."""
    arguments = DatasetMapper.from_config(cfg, is_train=True)
    if cfg.INPUT.RESIZE_TRAIN == "cv2":
        size = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
        plain = PlainBilinearShortestEdge(*size, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
        arguments["augmentations"] = [
            plain if isinstance(augmentation, ResizeShortestEdge) else augmentation
            for augmentation in arguments["augmentations"]
        ]
    return DatasetMapper(**arguments)
