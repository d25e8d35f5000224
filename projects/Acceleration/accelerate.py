"""Apply the config's choices of how a model is run."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from gnws_d2.errors import ConfigError

from .activation_checkpointing import checkpoint_activations
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
    gn, stages = cfg.MODEL.GN, cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING
    if _fuses(cfg):
        fuse_norm_relu(model, gn.RECOMPUTE_ACTIVATIONS, gn.RECOMPUTE_CONVOLUTIONS)
        logger.info("Fused %d of %d GroupNorms with the ReLU after them", *count_fused(model))
    if stages:
        checkpoint_activations(model, stages)
        logger.info("Recomputing the residual blocks of %s in backward", ", ".join(stages))
    if cfg.INPUT.SIZE_DIVISIBILITY:
        pad_to_multiples(model, cfg.INPUT.SIZE_DIVISIBILITY)
    if cfg.MODEL.CHANNELS_LAST:
        use_channels_last(model)
        logger.info("Storing weights and feature maps as channels_last")
    return model


def _fuses(cfg: CfgNode) -> bool:
    """Whether the config, or with "auto" the device, asks for fused norms."""
    choice = cfg.MODEL.GN.FUSE_RELU
    recompute = cfg.MODEL.GN.RECOMPUTE_ACTIVATIONS or cfg.MODEL.GN.RECOMPUTE_CONVOLUTIONS
    if choice == "never" and recompute:
        raise ConfigError(
            'MODEL.GN.RECOMPUTE_... is True, but MODEL.GN.FUSE_RELU is "never", and only the fused '
            'operation can be recomputed. Set MODEL.GN.FUSE_RELU to "auto".'
        )
    if choice == "auto":
        device = torch.device(cfg.MODEL.DEVICE)
        return recompute or (device.type == "cuda" and triton_runs_on(device))
    if choice not in ("always", "never"):
        raise ConfigError(
            f'MODEL.GN.FUSE_RELU is {choice!r}. Set it to "auto", "always" or "never".'
        )
    return choice == "always"
