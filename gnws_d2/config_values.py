"""Values that no config can hold, and components that nobody has registered."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.utils.registry import Registry

from .errors import ConfigError, shorten

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
_DEPTHS = (18, 34, 50, 101, 152)
_DEEPLAB_DEPTHS = (50, 101, 152)

# Sections of MODEL whose components Detectron2's meta-architectures build.
_RPN = ("BACKBONE", "ANCHOR_GENERATOR", "PROPOSAL_GENERATOR", "RPN")
_RCNN = (*_RPN, "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD")
_OF_DETECTRON2: Mapping[str, tuple[str, ...]] = {
    "GeneralizedRCNN": _RCNN,
    "PanopticFPN": (*_RCNN, "SEM_SEG_HEAD"),
    "ProposalNetwork": _RPN,
    "RetinaNet": ("BACKBONE", "ANCHOR_GENERATOR"),
    "SemanticSegmentor": ("BACKBONE", "SEM_SEG_HEAD"),
}
_REGISTRIES: Mapping[str, Registry] = {
    "BACKBONE": BACKBONE_REGISTRY,
    "ANCHOR_GENERATOR": ANCHOR_GENERATOR_REGISTRY,
    "PROPOSAL_GENERATOR": PROPOSAL_GENERATOR_REGISTRY,
    "RPN": RPN_HEAD_REGISTRY,
    "ROI_HEADS": ROI_HEADS_REGISTRY,
    "ROI_BOX_HEAD": ROI_BOX_HEAD_REGISTRY,
    "ROI_MASK_HEAD": ROI_MASK_HEAD_REGISTRY,
    "ROI_KEYPOINT_HEAD": ROI_KEYPOINT_HEAD_REGISTRY,
    "SEM_SEG_HEAD": SEM_SEG_HEADS_REGISTRY,
}


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, value) of every value."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


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


def check_components(cfg: CfgNode) -> None:
    """Raise ConfigError if ``cfg`` names a component that is used and not registered, or a ResNet
    that does not exist."""
    model = cfg.MODEL
    architecture = model.META_ARCHITECTURE
    _check_registered("MODEL.META_ARCHITECTURE", architecture, META_ARCH_REGISTRY)
    if architecture not in _OF_DETECTRON2:  # what another one reads is its own affair
        architecture = model.WS.META_ARCHITECTURE
    for section in _OF_DETECTRON2.get(architecture, ()):
        key = "HEAD_NAME" if section == "RPN" else "NAME"
        name = model[section][key]
        switch = {"ROI_MASK_HEAD": "MASK_ON", "ROI_KEYPOINT_HEAD": "KEYPOINT_ON"}.get(section)
        is_off = switch is not None and not model[switch]
        needs_none = (section == "PROPOSAL_GENERATOR" and name == "PrecomputedProposals") or (
            section == "ROI_BOX_HEAD" and name == ""  # Res5ROIHeads
        )
        if not is_off and not needs_none:
            _check_registered(f"MODEL.{section}.{key}", name, _REGISTRIES[section])
    if "resnet" in model.BACKBONE.NAME:
        depths = _DEEPLAB_DEPTHS if "deeplab" in model.BACKBONE.NAME else _DEPTHS
        if model.RESNETS.DEPTH not in depths:
            raise ConfigError(
                f"MODEL.RESNETS.DEPTH is {model.RESNETS.DEPTH}. Set it to one of "
                f"{', '.join(map(str, depths))}."
            )


def _check_registered(key: str, name: str, registry: Registry) -> None:
    if name not in registry:
        known = sorted(known for known, _ in registry)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
        raise ConfigError(
            f"{key} is {shorten(name)}, which is not registered. Set it to "
            f"{' or '.join(map(repr, near))}, or import the module that registers it first."
        )
