"""Configs and models by name, with the functions of ``detectron2.model_zoo``."""

from __future__ import annotations

from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..config import load_config

_PACKAGED = Path(__file__).parent / "configs"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "configs"  # in a source tree
CONFIG_ROOT = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def get_config_file(config_path: str) -> str:
    """The file of a packaged config.

    Args:
        config_path: a name relative to ``configs/``, such as
            "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml".

    Raises:
        FileNotFoundError: there is no such config; the message lists those of its folder.
    """
    file = CONFIG_ROOT / config_path
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else CONFIG_ROOT
        names = sorted(str(f.relative_to(CONFIG_ROOT)) for f in folder.rglob("*.yaml"))
        raise FileNotFoundError(
            f"{config_path!r} is neither a file nor a config of gnws_d2. "
            f"Its configs: {', '.join(names)}."
        )
    return str(file)


def resolve_config_file(file: str) -> str:
    """``file`` if it exists, else the packaged config of that name; "" stays "".

    Raises:
        FileNotFoundError: see :func:`get_config_file`.
    """
    return file if not file or Path(file).is_file() else get_config_file(file)


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The config of that name, all keys filled in.

    Args:
        config_path: see :func:`get_config_file`.
        trained: name the trained detector's checkpoint in ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError: see :func:`get_config_file`.
        RuntimeError: ``trained`` is set: see :func:`get`.
    """
    cfg = load_config(get_config_file(config_path))
    if trained:
        raise RuntimeError(
            f"gnws_d2 {_version()} cannot download the trained checkpoint of {config_path!r}. "
            "Use trained=False and set MODEL.WEIGHTS to a checkpoint file of your own."
        )
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The model of that config, in training mode, with the weights its config names.

    Args:
        config_path: see :func:`get_config_file`.
        trained: see :func:`get_config`.
        device: replaces the config's ``MODEL.DEVICE``.

    Raises:
        FileNotFoundError, RuntimeError: see :func:`get_config`.
    """
    cfg = get_config(config_path, trained)
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def _version() -> str:
    from .. import __version__

    return __version__
