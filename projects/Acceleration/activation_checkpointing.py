"""Activation checkpointing: less memory for more time, in chosen stages of a backbone."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from gnws_d2.errors import ConfigError

_KEY = "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING"


def checkpoint_activations(model: nn.Module, stages: Sequence[str]) -> None:
    """Make every residual block of ``stages`` keep only its input, and recompute the rest in
    backward; in place. Gradients, modules and their names do not change.

    Args:
        model: one whose backbone is a ResNet, with or without a pyramid on top, or such a backbone.
        stages: of "res2" to "res5".

    Raises:
        ConfigError: the model has no such stage, or a norm of the stage updates its statistics in
            each forward, which the second forward would do again.
    """
    backbone = getattr(model, "backbone", model)
    resnet: Any = getattr(backbone, "bottom_up", backbone)
    known = resnet.stage_names if isinstance(resnet, ResNet) else ()
    for name in stages:
        if name not in known:
            raise ConfigError(
                f"{_KEY} names {name!r}, but the stages of the backbone, a "
                f"{type(resnet).__name__}, are {list(known)}. Remove {name!r}."
            )
        for block in getattr(resnet, name):
            for module in block.modules():
                has_buffers = next(module.buffers(recurse=False), None) is not None
                if has_buffers and not isinstance(module, FrozenBatchNorm2d):
                    raise ConfigError(
                        f"{_KEY} names {name!r}, which has a {type(module).__name__}; its running "
                        "statistics would be updated in the forward and again in the backward of "
                        f'each step. Remove {name!r}, or set MODEL.RESNETS.NORM to "GN" or '
                        '"FrozenBN".'
                    )
            # Not a wrapping module, which would change all names. A partial, because a copy of
            # the model then calls its own blocks.
            block.forward = functools.partial(_forward, block)


def _forward(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    # The class is looked up at each call: fusing changes it.
    return checkpoint(functools.partial(type(block).forward, block), x, use_reentrant=False)
