"""The meta-architecture through which a config standardizes any Detectron2 model, and chooses how
it is stored and run."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..config import META_ARCHITECTURE, ConfigError, check_config
from ..layers import kernels
from ..norms import with_norm_layers
from .compile import compile_parts
from .fuse import count_fused, fuse_norm_relu
from .memory_format import use_channels_last
from .padding import pad_to_multiples
from .standardize import StandardizationReport, standardize

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
def WeightStandardizedModel(cfg: CfgNode) -> nn.Module:
    """Build ``MODEL.WS.META_ARCHITECTURE`` with Detectron2's own builders, standardize
    ``MODEL.WS.PARTS`` of it, run it as ``MODEL.GN``, ``MODEL.CHANNELS_LAST``, ``MODEL.COMPILE`` and
    ``INPUT.SIZE_DIVISIBILITY`` say, log what came out, and return it: the model keeps its class.

    Raises:
        ConfigError: see :func:`gnws_d2.config.check_config`, :func:`gnws_d2.modeling.standardize`,
            :func:`.compile.compile_parts` and :func:`.padding.pad_to_multiples`.
    """
    check_config(cfg)
    name = cfg.MODEL.WS.META_ARCHITECTURE
    if name == META_ARCHITECTURE or name not in META_ARCH_REGISTRY:
        known = sorted(key for key, _ in META_ARCH_REGISTRY if key != META_ARCHITECTURE)
        raise ConfigError(
            f"MODEL.WS.META_ARCHITECTURE is {name!r}, which is not a meta-architecture that can be "
            f"standardized. Registered are: {', '.join(known)}."
        )
    model = META_ARCH_REGISTRY.get(name)(with_norm_layers(cfg))
    standardize(model, cfg.MODEL.WS.PARTS)
    logger.info("Weight Standardization by part:\n%s", StandardizationReport.of(model))
    _choose_path(model, cfg)
    return model


def _choose_path(model: nn.Module, cfg: CfgNode) -> None:
    """How the same computation is run."""
    if _fuses(cfg):
        gn = cfg.MODEL.GN
        fuse_norm_relu(model, gn.REBUILD_ACTIVATIONS, gn.REBUILD_CONVOLUTIONS)
        logger.info("GroupNorm + ReLU is one operation in %d of %d GroupNorms", *count_fused(model))
        if gn.REBUILD_ACTIVATIONS:
            also = " and the inputs of GroupNorm" if gn.REBUILD_CONVOLUTIONS else ""
            logger.info("Computed again in backward: its results%s, where that saves memory", also)
    multiple, compiled = cfg.INPUT.SIZE_DIVISIBILITY, cfg.MODEL.COMPILE
    if multiple:
        pad_to_multiples(model, multiple)
        logger.info("Pictures are padded to multiples of %d pixels", multiple)
    if cfg.MODEL.CHANNELS_LAST:
        use_channels_last(model)
        logger.info("Weights and feature maps are channels_last")
    if compiled.PARTS:
        compile_parts(model, compiled.PARTS, compiled.BACKEND, few_sizes=multiple > 0)
        logger.info("Compiled when first called (%s): %s", compiled.BACKEND, compiled.PARTS)


def _fuses(cfg: CfgNode) -> bool:
    if cfg.MODEL.GN.FUSE_RELU == "auto":
        device = torch.device(cfg.MODEL.DEVICE)
        by_triton = device.type == "cuda" and kernels.run_on(kernels.MAP, device)
        return by_triton or cfg.MODEL.GN.REBUILD_ACTIVATIONS
    return cfg.MODEL.GN.FUSE_RELU == "always"
