"""The packaged configs by name; mirrors ``detectron2.model_zoo``."""

from .model_zoo import get, get_config, get_config_file, resolve_config_file

__all__ = ["get", "get_config", "get_config_file", "resolve_config_file"]
