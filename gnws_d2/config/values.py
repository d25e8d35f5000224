"""Values that no config can hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode

from ..errors import ConfigError, shorten
from .access import leaves

# Below 0 as in Detectron2's own meaning: no limit, or no such label.
_MAY_BE_NEGATIVE = {
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
    "TEST.DETECTIONS_PER_IMAGE",
}
_AT_LEAST_1 = {
    *("MODEL.FPN.OUT_CHANNELS", "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.RPN.BATCH_SIZE_PER_IMAGE"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"),
    *("MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP", "MODEL.RESNETS.RES5_DILATION"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "MODEL.RESNETS.RES2_OUT_CHANNELS"),
    *("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"),
    *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.CHECKPOINT_PERIOD"),
}
_MOST_LAYERS = 1000
_LAYERS = (".NUM_CONV", ".NUM_CONVS", ".NUM_FC")
_FRACTIONS = {
    *("MODEL.RPN.NMS_THRESH", "MODEL.RPN.POSITIVE_FRACTION", "MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    *("MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.RETINANET.NMS_THRESH_TEST"),
    *("MODEL.RETINANET.PRIOR_PROB", "SOLVER.MOMENTUM"),
}
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RESIZE_TRAIN": ("pil", "cv2"),
    "INPUT.RESIZE_TEST": ("pil", "cv2"),
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "DATALOADER.FILTER": ("mmdetection", "detectron2"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "TEST.PRECISION": ("float32", "bfloat16", "float16"),
    "MODEL.BCN.SCHEDULE": ("lr", "constant"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
}


def check_values(cfg: CfgNode, defaults: CfgNode) -> None:
    """Raise ConfigError if a value of ``cfg`` is of another kind than the default, or outside of
    its range."""
    default_of = dict(leaves(defaults))
    for key, value in leaves(cfg):
        default = default_of.get(key)
        if default is not None:
            _check_kind(key, value, default)
        _check_range(key, value, default)


def _check_kind(key: str, value: Any, default: Any) -> None:
    if value is None:
        raise ConfigError(f"{key} is null. Set it to a value such as {shorten(default)}.")
    # yacs compares the type of a list, but not those of its elements.
    expected = {_kind(element) for element in _elements(default)} or {"number", "text"}
    wrong = [element for element in _elements(value) if _kind(element) not in expected]
    if wrong:
        raise ConfigError(
            f"{key} is {shorten(value)}, but {shorten(wrong[0])} cannot be there. "
            f"Set it to a value such as {shorten(default)}."
        )


def _check_range(key: str, value: Any, default: Any) -> None:
    if key in _CHOICES and value not in _CHOICES[key]:
        *others, last = (f'"{choice}"' for choice in _CHOICES[key])
        raise ConfigError(f"{key} is {shorten(value)}. Set it to {', '.join(others)} or {last}.")
    numbers = [e for e in _elements(value) if _kind(e) == "number"]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ConfigError(f"{key} is {shorten(value)}, which is not finite. Set it to a number.")
    if any(abs(number) >= 2**63 for number in numbers):
        raise ConfigError(f"{key} is {shorten(value)}, which is too large. Set it below 2 ** 63.")
    if not numbers or isinstance(value, (list, tuple, bool)):
        return
    if key in _AT_LEAST_1 and value < 1:
        raise ConfigError(f"{key} is {shorten(value)}. Set it to 1 or more.")
    if key.endswith(_LAYERS) and value > _MOST_LAYERS:
        raise ConfigError(f"{key} is {shorten(value)}. Set it to {_MOST_LAYERS} or less.")
    if key in _FRACTIONS and not 0 <= value <= 1:
        raise ConfigError(f"{key} is {shorten(value)}. Set it to a number from 0 to 1.")
    is_count = isinstance(default, (int, float)) and default >= 0
    if is_count and value < 0 and key not in _MAY_BE_NEGATIVE:
        raise ConfigError(f"{key} is {shorten(value)}. Set it to 0 or more.")


def _elements(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for element in value:
            yield from _elements(element)
    else:
        yield value


def _kind(value: Any) -> str:
    kinds = {"number": (bool, int, float), "text": (str,)}
    return next((name for name, types in kinds.items() if isinstance(value, types)), "other")
