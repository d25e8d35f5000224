"""What the model gets of an image: read, resized and augmented as the config says."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    build_augmentation,
    check_image_size,
    transform_proposals,
)

from ..errors import DatasetError, missing_package
from .augmentation import augment, drop_slivers, tightened
from .images import RESTORE, is_misread, read_image, read_labels


class Mapper(DatasetMapper):
    """``detectron2.data.DatasetMapper`` that reads images with :func:`read_image` and label images
    with :func:`read_labels`, and resizes and augments as this package's keys of INPUT say.

    Its output is that of Detectron2's, from a dict in Detectron2's dataset format.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        mode = cfg.INPUT.RESIZE_TRAIN if is_train else cfg.INPUT.RESIZE_TEST
        augmentations = resizing(mode, arguments["augmentations"])
        arguments["augmentations"] = augment(cfg, augmentations) if is_train else augmentations
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
            if is_cut := any(isinstance(t, T.ExtentTransform) for t in transforms.transforms):
                drop_slivers(mapped["annotations"], transforms, size)
            self._transform_annotations(mapped, transforms, size)
            if is_cut:
                mapped["instances"] = tightened(mapped["instances"])
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
    """A dataset mapper, of dicts in Detectron2's format, whose errors name the image.

    Raises:
        DatasetError: the mapper raises, lacks a package, or misreads the image.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        files = {key: record.get(key) for key in ("file_name", "sem_seg_file_name")}
        file = files["file_name"]
        try:
            mapped = self._mapper(record)
        except DatasetError:
            raise
        except ModuleNotFoundError as error:
            package, fix = missing_package(error)
            if package == "shapely":  # whatever the format of masks, Detectron2 crops polygons
                fix += ", or leave out the cropping, such as by INPUT.CROP.ENABLED False"
            raise DatasetError(
                f"{file} cannot be mapped: {package} is not installed. {fix}."
            ) from error
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(f"{file} cannot be used ({error}). {RESTORE}") from error
        if not isinstance(self._mapper, Mapper):
            check_mapped(mapped, files)
        return mapped


def check_mapped(mapped: Any, files: Mapping[str, Any] | None = None) -> None:
    """Refuse what a mapper reads in another range than evaluation does, such as Detectron2's own.

    Args:
        mapped: is looked at if it is a dict in the format of that mapper.
        files: has the names of the image and of its semantic labels; by default as ``mapped``.

    Raises:
        DatasetError: it is misread.
    """
    mapped = mapped if isinstance(mapped, dict) else {}
    for key, name in (("image", "file_name"), ("sem_seg", "sem_seg_file_name")):
        file, values = (files or mapped).get(name), mapped.get(key)
        if not file or not isinstance(values, torch.Tensor):
            continue
        if is_misread(values.cpu().numpy(), file, labels=key == "sem_seg"):
            raise DatasetError(
                f"{file} is read as another {key} by the mapper than by evaluation: as Detectron2, "
                "it cuts 16 bits at 255, or takes the colors of labels for classes. Use "
                "gnws_d2.data.Mapper, or its read_image and read_labels."
            )


def resizing(mode: str, augmentations: list[T.Augmentation]) -> list[T.Augmentation | T.Transform]:
    """Detectron2's augmentations, resizing as ``mode`` says, a value of ``INPUT.RESIZE_...``.

    "cv2" is bilinear interpolation between the four nearest pixels, as ``cv2.resize`` does by
    default. Pillow, which Detectron2 uses, averages over more pixels when an image shrinks. OpenCV
    rounds its weights to 1/2048, so a pixel may differ from this by one level.
    """
    if mode == "pil":
        return [*augmentations]
    # Detectron2 resizes float32 with torch, which interpolates between the nearest pixels.
    return [T.ColorTransform(np.float32), *augmentations, T.ColorTransform(_rounded)]


def _rounded(image: np.ndarray) -> np.ndarray:
    return np.rint(image).astype(np.uint8)


def build_test_augmentation(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """Detectron2's augmentation for evaluation, with the resizing of ``INPUT.RESIZE_TEST``."""
    return resizing(cfg.INPUT.RESIZE_TEST, build_augmentation(cfg, is_train=False))
