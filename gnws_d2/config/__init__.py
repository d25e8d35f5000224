"""Detectron2's config with this package's keys: reading, checking and saving it."""

from ..errors import ConfigError
from .access import built_architecture, dataset_names, get_key, leaves, set_key
from .consistency import check_config
from .defaults import changed_keys, portable_config
from .files import CONFIG_ROOT, config_names, get_config_file, resolve_config_file
from .keys import DATASET_KEYS, EPOCH_KEYS, META_ARCHITECTURE, add_gnws_config
from .load import explicit_keys, load_config, packaged_config

__all__ = [
    "CONFIG_ROOT",
    "DATASET_KEYS",
    "EPOCH_KEYS",
    "META_ARCHITECTURE",
    "ConfigError",
    "add_gnws_config",
    "built_architecture",
    "changed_keys",
    "check_config",
    "config_names",
    "dataset_names",
    "explicit_keys",
    "get_config_file",
    "get_key",
    "leaves",
    "load_config",
    "packaged_config",
    "portable_config",
    "resolve_config_file",
    "set_key",
]
