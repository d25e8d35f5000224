"""What the model gets of an image: read, resized and augmented as the config says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size, transform_proposals
from PIL.Image import Resampling

from ..errors import DatasetError
from .images import RESTORE, read_image, read_labels


class Mapper(DatasetMapper):
    """``detectron2.data.DatasetMapper`` that reads images with :func:`read_image` and label images
    with :func:`read_labels`, and resizes as INPUT.RESIZE_TRAIN and INPUT.RESIZE_TEST say.

    Its output is that of Detectron2's, from a dict in Detectron2's dataset format.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        if not is_train:
            arguments["augmentations"] = build_test_augmentation(cfg)
        elif cfg.INPUT.RESIZE_TRAIN == "cv2":
            size = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
            plain = PlainBilinearShortestEdge(*size, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
            arguments["augmentations"] = [
                plain if isinstance(augmentation, T.ResizeShortestEdge) else augmentation
                for augmentation in arguments["augmentations"]
            ]
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        mapped = copy.deepcopy(dataset_dict)
        image = read_image(mapped["file_name"], self.image_format)
        check_image_size(mapped, image)
        labels = mapped.pop("sem_seg_file_name", None)
        given = T.AugInput(image, sem_seg=labels and _as_bytes(labels))
        transforms = self.augmentations(given)
        size = given.image.shape[:2]
        mapped["image"] = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        if labels:
            values = given.sem_seg.astype(np.int64)
            values = values[..., 0] + 256 * values[..., 1] if values.ndim == 3 else values
            mapped["sem_seg"] = torch.from_numpy(values)
        if self.proposal_topk is not None:
            transform_proposals(mapped, size, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            mapped.pop("annotations", None)
        elif "annotations" in mapped:
            self._transform_annotations(mapped, transforms, size)
        return mapped


def _as_bytes(file: str) -> np.ndarray:
    """A label image as uint8, (H, W), or as two bytes of each value, (H, W, 2): Detectron2's
    transforms pick the nearest pixel of uint8 alone."""
    labels = read_labels(file)
    if labels.min() < 0 or labels.max() > 65535:
        raise DatasetError(f"{file} has labels beyond 16 bits. Number the classes from 0.")
    if labels.max() < 256:
        return labels.astype(np.uint8)
    return np.stack([labels & 255, labels >> 8], -1).astype(np.uint8)


class NamingMapper:
    """A dataset mapper, of dicts in Detectron2's format, whose errors name the image."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        try:
            return self._mapper(record)
        except DatasetError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(
                f"{record['file_name']} cannot be used ({error}). {RESTORE}"
            ) from error


class PlainBilinear(T.ResizeTransform):
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


class PlainBilinearShortestEdge(T.ResizeShortestEdge):
    """``ResizeShortestEdge``, which chooses the size, with :class:`PlainBilinear`."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        chosen = super().get_transform(image)
        if not isinstance(chosen, T.ResizeTransform):
            return chosen  # nothing to do
        return PlainBilinear(chosen.h, chosen.w, chosen.new_h, chosen.new_w)


RESIZE = {"pil": T.ResizeShortestEdge, "cv2": PlainBilinearShortestEdge}  # by INPUT.RESIZE_...


def build_test_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Detectron2's augmentation for evaluation, with the resizing of ``INPUT.RESIZE_TEST``."""
    size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return [RESIZE[cfg.INPUT.RESIZE_TEST](*size, sample_style="choice")]
