"""Apply the config's choices of how a model is run."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from .activation_checkpointing import checkpoint_activations
from .compile import compile_parts
from .config import check_acceleration_config
from .fuse import count_fused, fuse_norm_relu
from .kernels import triton_runs_on
from .layout import pad_to_multiples, use_channels_last

logger = logging.getLogger(__name__)


def accelerate(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Run ``model`` as the keys of :func:`add_acceleration_config` say, in place, and log it.

    Parameters, their names and the state dict do not change: to undo it, build the model again and
    load the state dict. ``gnws_d2.layers.fold`` takes an accelerated model.

    Args:
        model: any built Detectron2 model, on its device.
        cfg: the model's config. Without the keys of this project, nothing is done.

    Returns:
        ``model``.

    Raises:
        ConfigError: the keys contradict each other, or the model has no such part or stage.
    """
    if "GN" not in cfg.MODEL:
        return model
    check_acceleration_config(cfg)
    gn, compiled, multiple = cfg.MODEL.GN, cfg.MODEL.COMPILE, cfg.INPUT.SIZE_DIVISIBILITY
    stages = cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING
    if _fuses(cfg):
        fuse_norm_relu(model, gn.RECOMPUTE_ACTIVATIONS, gn.RECOMPUTE_CONVOLUTIONS)
        logger.info("Fused %d of %d GroupNorms with the ReLU after them", *count_fused(model))
        if gn.RECOMPUTE_ACTIVATIONS:
            also = ", and the inputs of GroupNorm," if gn.RECOMPUTE_CONVOLUTIONS else ""
            logger.info("Recomputing their results%s in backward where it saves memory", also)
    if stages:
        checkpoint_activations(model, stages)
        logger.info("Recomputing the residual blocks of %s in backward", ", ".join(stages))
    if multiple:
        pad_to_multiples(model, multiple)
        logger.info("Padding images to multiples of %d pixels", multiple)
    if cfg.MODEL.CHANNELS_LAST:
        use_channels_last(model)
        logger.info("Storing weights and feature maps as channels_last")
    if compiled.PARTS:
        compile_parts(model, compiled.PARTS, compiled.BACKEND, few_sizes=multiple > 0)
        parts = ", ".join(compiled.PARTS)
        logger.info("Compiling %s with %s at the first call", parts, compiled.BACKEND)
    return model


def _fuses(cfg: CfgNode) -> bool:
    if cfg.MODEL.GN.FUSE_RELU == "auto":
        device = torch.device(cfg.MODEL.DEVICE)
        by_triton = device.type == "cuda" and triton_runs_on(device)
        return by_triton or cfg.MODEL.GN.RECOMPUTE_ACTIVATIONS
    return cfg.MODEL.GN.FUSE_RELU == "always"
