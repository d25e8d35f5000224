"""Standardization of Detectron2's models. Importing this registers its components."""

from . import backbone, meta_arch  # noqa: F401  register their functions with Detectron2
from .heads import (
    WSDeepLabV3Head,
    WSDeepLabV3PlusHead,
    WSFastRCNNConvFCHead,
    WSMaskRCNNConvUpsampleHead,
    WSSemSegFPNHead,
)
from .matcher import MaxIoUMatcher
from .roi_heads import MaxIoUROIHeads
from .rpn import MaxIoURPN
from .standardize import StandardizationReport, part_of, standardize

__all__ = [
    "MaxIoUMatcher",
    "MaxIoUROIHeads",
    "MaxIoURPN",
    "StandardizationReport",
    "WSDeepLabV3Head",
    "WSDeepLabV3PlusHead",
    "WSFastRCNNConvFCHead",
    "WSMaskRCNNConvUpsampleHead",
    "WSSemSegFPNHead",
    "part_of",
    "standardize",
]
