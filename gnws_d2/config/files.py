"""The packaged configs, by name."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import GnwsError, shorten

_PACKAGED = Path(__file__).parents[1] / "model_zoo" / "configs"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "configs"  # in a source tree
CONFIG_ROOT = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


class ConfigFileError(GnwsError, FileNotFoundError):
    """Neither a file nor a packaged config has the name."""


def config_names(lazy: bool = False) -> list[str]:
    """The names of all packaged configs that describe a model, relative to ``configs/``.

    Args:
        lazy: LazyConfigs, too.
    """
    files = [*CONFIG_ROOT.glob("*/*.yaml")]
    if lazy:  # lazy_common.py is a part of them
        files += [file for file in CONFIG_ROOT.glob("*/*.py") if not file.name.startswith("lazy")]
    return sorted(file.relative_to(CONFIG_ROOT).as_posix() for file in files)


def get_config_file(config_path: str) -> str:
    """The file of a packaged config.

    Args:
        config_path: a name relative to ``configs/``, such as
            "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml".

    Raises:
        FileNotFoundError: there is no such config; the message lists those of its folder.
    """
    file = CONFIG_ROOT / config_path
    if not os.path.isfile(file):  # unlike Path.is_file, also where no file can have the name
        folder = config_path.rpartition("/")[0]
        names = [name for name in config_names() if name.startswith(f"{folder}/")]
        raise ConfigFileError(
            f"{shorten(config_path)} is neither a file nor a config of gnws_d2. "
            f"Its configs: {', '.join(names or config_names())}."
        )
    return str(file)


def resolve_config_file(file: str) -> str:
    """``file`` if it exists, else the packaged config of that name; "" stays "".

    Raises:
        FileNotFoundError: see :func:`get_config_file`.
    """
    return file if not file or os.path.isfile(file) else get_config_file(file)
