"""Configs, models and checkpoints by name, with the functions of ``detectron2.model_zoo``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint import Checkpointer
from ..config import get_config_file, load_config
from ..modeling.errors import build_errors
from .published import published


def get_checkpoint_url(config_path: str) -> str:
    """The address of the published detector that was trained with a config.

    Args:
        config_path: see :func:`~gnws_d2.config.get_config_file`.

    Returns:
        "gnws://...", for MODEL.WEIGHTS in any program that imports gnws_d2.

    Raises:
        RuntimeError: no detector of that config was published.
    """
    for entry in published():
        if entry.config == config_path and not entry.is_backbone:
            return entry.uri
    get_config_file(config_path)  # raises if there is no such config
    trained = [entry.config for entry in published() if not entry.is_backbone]
    raise RuntimeError(
        f"no trained detector of {config_path!r} was published. Choose from: {', '.join(trained)}."
    )


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The config of that name, all keys filled in.

    Args:
        config_path: see :func:`~gnws_d2.config.get_config_file`.
        trained: name the published detector in ``MODEL.WEIGHTS``, instead of the backbone that
            training starts from.

    Raises:
        FileNotFoundError: there is no such config.
        RuntimeError: see :func:`get_checkpoint_url`.
    """
    cfg = load_config(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The model of that config, in training mode.

    Args:
        config_path: see :func:`~gnws_d2.config.get_config_file`.
        trained: with the weights of the published detector; else with those that the config names,
            of an ImageNet backbone. Both are downloaded when they are first asked for.
        device: replaces the config's ``MODEL.DEVICE``.

    Raises:
        FileNotFoundError, RuntimeError: see :func:`get_config`.
        OSError, CheckpointError: see :func:`~gnws_d2.model_zoo.fetch.fetch`.
    """
    cfg = get_config(config_path, trained)
    if device is not None:
        cfg.MODEL.DEVICE = device
    with build_errors(cfg):
        model = build_model(cfg)
    Checkpointer(model, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    return model
