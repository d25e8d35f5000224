"""Detectron2's heads with standardized convolutions, by name.

Each class extends Detectron2's class without ``WS`` in its name: same arguments, config keys and
parameter names. Every convolution that a norm follows is standardized. A norm may also be one of
:data:`.norms.BCN_NORMS`.
"""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from detectron2.projects.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from torch import nn

from .norms import norm_layer, with_norm_layers
from .standardize import standardize


class _Standardized(nn.Module):
    """What the next base class builds, with "GN" in place of its default norm."""

    norm_argument = "norm"

    @configurable
    def __init__(self, input_shape: ShapeSpec | dict[str, ShapeSpec], **kwargs: Any) -> None:
        norm = norm_layer(kwargs.pop(self.norm_argument, "GN"))
        super().__init__(input_shape, **{self.norm_argument: norm}, **kwargs)
        standardize(self)


@ROI_BOX_HEAD_REGISTRY.register()
class WSFastRCNNConvFCHead(_Standardized, FastRCNNConvFCHead):
    """The box head: standardized convolutions, then fully connected layers."""

    plain_class, norm_argument = FastRCNNConvFCHead, "conv_norm"


@ROI_MASK_HEAD_REGISTRY.register()
class WSMaskRCNNConvUpsampleHead(_Standardized, MaskRCNNConvUpsampleHead):
    """The mask head: standardized convolutions, then an upsampling and a predicting one without a
    norm, which are not standardized."""

    plain_class, norm_argument = MaskRCNNConvUpsampleHead, "conv_norm"


@SEM_SEG_HEADS_REGISTRY.register()
class WSSemSegFPNHead(_Standardized, SemSegFPNHead):
    """The semantic head on FPN."""

    plain_class = SemSegFPNHead


@SEM_SEG_HEADS_REGISTRY.register()
class WSDeepLabV3PlusHead(_Standardized, DeepLabV3PlusHead):
    """The semantic head of DeepLabV3+."""

    plain_class = DeepLabV3PlusHead


@SEM_SEG_HEADS_REGISTRY.register()
class WSDeepLabV3Head(DeepLabV3Head):
    """The semantic head of DeepLabV3, which Detectron2 builds from a config alone."""

    plain_class = DeepLabV3Head

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__(with_norm_layers(cfg), input_shape)
        standardize(self)
