"""Components that a config names and nobody has registered."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

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

from ..errors import ConfigError, shorten

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
