"""Published configs and checkpoints by name; mirrors ``detectron2.model_zoo``."""

from . import path_handler
from .model_zoo import get, get_checkpoint_url, get_config, get_config_file

path_handler.register()

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]
