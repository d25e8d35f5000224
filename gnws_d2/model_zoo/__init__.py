"""Published configs, models and checkpoints by name; mirrors ``detectron2.model_zoo``.

Importing this makes Detectron2's path manager understand ``gnws://NAME``.
"""

from typing import Any

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from ..checkpoint import Checkpointer
from ..config import get_config_file, load_config
from ..modeling.errors import build_errors
from .fetch import PublishedCheckpointHandler
from .published import find

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

PathManager.register_handler(PublishedCheckpointHandler(), allow_override=True)


def get_checkpoint_url(config_path: str) -> str:
    """The address of the published detector that was trained with a config, such as
    :func:`get_config` takes: "gnws://...", for MODEL.WEIGHTS in any program that imports gnws_d2.

    Raises:
        ConfigError: there is no such config.
        CheckpointError: no detector of that config was published.
    """
    get_config_file(config_path)
    return find(config_path).uri


def get_config(config_path: str, trained: bool = False) -> CfgNode | Any:
    """The config of that name, all keys filled in; of a name in ".py" a LazyConfig.

    Args:
        config_path: see :func:`~gnws_d2.config.get_config_file`.
        trained: name the published detector in ``MODEL.WEIGHTS``, instead of the backbone that
            training starts from.

    Raises:
        ConfigError, CheckpointError: see :func:`get_checkpoint_url`.
    """
    file = get_config_file(config_path)
    cfg = LazyConfig.load(file) if file.endswith(".py") else load_config(file)
    if trained:  # of YAML configs alone
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The model of the config that :func:`get_config` gives, in training mode, on ``device`` or the
    config's. Its weights, of a detector or a backbone, are downloaded where they are not cached.

    Raises:
        ConfigError, CheckpointError: see :func:`get_config`.
        FileError, CheckpointError: see :func:`~gnws_d2.model_zoo.fetch.fetch`.
    """
    cfg = get_config(config_path, trained)
    if not isinstance(cfg, CfgNode):
        model = instantiate(cfg.model).to(device or cfg.train.device)
        Checkpointer(model).load(cfg.train.init_checkpoint)
        return model
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    with build_errors(cfg):
        model = build_model(cfg)
    Checkpointer(model, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    return model
