"""The config keys of this project, and what they do to a model."""

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


def add_acceleration_config(cfg: CfgNode) -> None:
    """Add this project's keys to ``cfg``, in place."""
    cfg.MODEL.GN = CfgNode()
    # Run GroupNorm and the ReLU after it as one operation: "always", "never", or "auto", which
    # fuses on a GPU with Triton and where something is recomputed. "never" by default,
    # because the kernels have not been measured on a GPU yet. The environment variable
    # GNWS_D2_KERNELS=torch turns Triton off.
    cfg.MODEL.GN.FUSE_RELU = "never"
    # Keep only the input of GroupNorm + ReLU, and recompute the result in backward for the layer
    # after it: less memory, one more pass over the activation, the same gradients.
    cfg.MODEL.GN.RECOMPUTE_ACTIVATIONS = False
    # The same, and also recompute the input of GroupNorm where it comes from a 1x1 convolution with
    # no more input than output channels, as at the end of a bottleneck block: even less memory, and
    # the forward of these convolutions once more.
    cfg.MODEL.GN.RECOMPUTE_CONVOLUTIONS = False
    # Stages of a ResNet, of "res2" to "res5", that keep only the inputs of their blocks for
    # backward and recompute the rest: less memory, more time, the same gradients.
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = []
    # Store weights and feature maps with the channels as the fastest dimension, the format in
    # which tensor cores compute. Values, names and checkpoints do not change.
    cfg.MODEL.CHANNELS_LAST = False
    # Pad images to multiples of this many pixels, so that there are few sizes for cuDNN to try. GN
    # sees the padding, so scores change a little. 0: pad as the backbone
    # needs it, to multiples of 32 with a feature pyramid.
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    # Of older versions; torch.compile was slower.
    compiling = {"MODEL.COMPILE", "MODEL.COMPILE.PARTS", "MODEL.COMPILE.BACKEND"}
    for key in compiling - cfg.__dict__[CfgNode.DEPRECATED_KEYS]:
        cfg.register_deprecated_key(key)


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
        fused, norms = count_fused(model)
        if torch.device(cfg.MODEL.DEVICE).type == "cuda" and fused < norms:
            logger.warning(
                "MODEL.CHANNELS_LAST: CUDA's own GroupNorm returns NCHW, so what %d of %d norms "
                'return is copied by the next convolution. MODEL.GN.FUSE_RELU "auto" fuses those '
                "that a ReLU follows.",
                norms - fused,
                norms,
            )
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
        raise ConfigError(f'MODEL.GN.FUSE_RELU is {choice!r}. Use "auto", "always" or "never".')
    return choice == "always"
