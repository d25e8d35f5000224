"""LazyConfigs, Detectron2's configs in Python, with overrides that must hit a key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import LazyConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config import resolve_config_file
from .errors import ConfigError


def load_lazy_config(file: str, opts: Sequence[str] = ()) -> Any:
    """The config that a Python file describes. The file is a program, and it runs.

    Args:
        file: a path, or the name of a packaged config such as "Digits/fcos_R_18_FPN_gn_ws.py".
        opts: see :func:`apply_overrides`.

    Raises:
        ConfigError: it is no Python file, or see :func:`apply_overrides`.
        FileNotFoundError: neither a file nor a packaged config has that name.
    """
    if not file.endswith(".py"):
        raise ConfigError(
            f"{file} is not a .py file. Use train_net.py for a .yaml config: as a LazyConfig, "
            "Detectron2 would execute what it says in !!python tags."
        )
    return apply_overrides(LazyConfig.load(resolve_config_file(file)), opts)


def apply_overrides(cfg: Any, opts: Sequence[str]) -> Any:
    """``cfg`` with the values that ``opts`` name, each "key=value".

    "+key=value" adds a key; without the plus, a key that does not exist is an error.

    Raises:
        ConfigError: a word has another form, names a key that does not exist, or a value that
            cannot be there.
    """
    for word in opts:
        key, equals, _ = word.partition("=")
        if not equals:
            raise ConfigError(f"an override has the form key=value; found {word!r}.")
        if not key.startswith("+") and not _exists(cfg, key):
            near = difflib.get_close_matches(key, list(_keys(cfg)), n=3, cutoff=0.6)
            fix = f"Did you mean {' or '.join(near)}?" if near else "Correct it."
            raise ConfigError(
                f"the command line sets {key}, which the config does not have. {fix} To add it, "
                f"write +{word}."
            )
    try:
        return LazyConfig.apply_overrides(cfg, list(opts))
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"the overrides {' '.join(opts)}: {error}") from error


def _exists(cfg: Any, key: str) -> bool:
    *parents, last = key.split(".")
    node = OmegaConf.select(cfg, ".".join(parents)) if parents else cfg
    if isinstance(node, ListConfig):
        return last.isdigit() and int(last) < len(node)
    return isinstance(node, DictConfig) and last in node


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig):
        for name, value in node.items_ex(resolve=False):
            yield f"{prefix}{name!s}"
            yield from _keys(value, f"{prefix}{name!s}.")
