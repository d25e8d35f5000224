"""Detectron2's ResNet and ResNeXt backbones with standardized convolutions, by name.

Each builder extends Detectron2's builder without ``ws_`` in its name, and reads the same keys.
Every convolution that a norm follows is standardized: those of the stem and the residual stages
(MODEL.RESNETS.NORM) and of FPN (MODEL.FPN.NORM).
"""

import logging
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)
from detectron2.projects.deeplab import build_resnet_deeplab_backbone

from ..errors import ConfigError
from .deform_conv import build_deformable
from .initialization import init_xavier
from .norms import with_norm_layers
from .standardize import standardize

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
def build_ws_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet or ResNeXt."""
    return _build(build_resnet_backbone, cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_ws_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet or ResNeXt with FPN, as Faster and Mask R-CNN use it. The lateral convolutions start
    as in the published models; see :func:`.initialization.init_xavier`."""
    backbone: Any = _build(build_resnet_fpn_backbone, cfg, input_shape)
    init_xavier(backbone.lateral_convs)
    return backbone


@BACKBONE_REGISTRY.register()
def build_ws_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet or ResNeXt with FPN up to P7, as RetinaNet uses it."""
    return _build(build_retinanet_resnet_fpn_backbone, cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_ws_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet with the stem and the dilations of DeepLab; reads the keys of
    ``detectron2.projects.deeplab``."""
    return _build(build_resnet_deeplab_backbone, cfg, input_shape)


def _build(
    build: Callable[[CfgNode, ShapeSpec], Backbone], cfg: CfgNode, input_shape: ShapeSpec
) -> Backbone:
    name, norm = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.NORM
    if not norm:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME is {name!r}, but MODEL.RESNETS.NORM is '', and Weight "
            'Standardization needs a norm. Set MODEL.RESNETS.NORM to "GN".'
        )
    if norm == "FrozenBN":
        logger.warning(
            "MODEL.RESNETS.NORM is 'FrozenBN', whose statistics never change. Keep it for weights "
            "that were trained with Weight Standardization and BN; to train with GN+WS, set it to "
            '"GN".'
        )
    if "fpn" in name and not cfg.MODEL.FPN.NORM:
        logger.warning(
            "MODEL.FPN.NORM is '', so the convolutions of FPN are not standardized. To train with "
            'GN+WS, set it to "GN".'
        )
    return standardize(build_deformable(build, with_norm_layers(cfg), input_shape))
