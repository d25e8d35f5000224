"""Merging values into a config, with errors that name the key and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode

from ..errors import ConfigError, shorten
from .access import get_key, leaves, set_key
from .keys import DATASET_KEYS, REMOVED_KEYS


def merge_file(cfg: CfgNode, content: CfgNode, file: str) -> None:
    """Merge what a file sets into ``cfg``.

    Raises:
        ConfigError: a key does not exist, or its value has the wrong type.
    """
    known = {key for key, _ in leaves(cfg)} | REMOVED_KEYS
    for key, value in leaves(content):
        if any(k.startswith(key + ".") for k in known):
            raise _is_section(key, value, file)
        if key not in known:
            raise _unknown_key(key, value, cfg, file)
    with _merging(file), _other_types(cfg, dict(leaves(content))):
        cfg.merge_from_other_cfg(content)


def merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge KEY VALUE pairs, flat, into ``cfg``.

    Raises:
        ConfigError: see :func:`merge_file`; or a value is missing.
    """
    if len(opts) % 2:
        raise ConfigError(
            f"overrides come in pairs, KEY VALUE; found {len(opts)} words: {shorten(opts)}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        node = cfg
        for word in key.split("."):
            if key in REMOVED_KEYS:
                break
            if not isinstance(node, CfgNode) or word not in node:
                raise _unknown_key(key, value, cfg, "the command line")
            node = node[word]
        if isinstance(node, CfgNode) and key not in REMOVED_KEYS:
            raise _is_section(key, value, "the command line")
        with _merging(f"{key} {shorten(value)}"), _other_types(cfg, {key: value}):
            cfg.merge_from_list([key, value])


@contextmanager
def _merging(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # yacs parses values as literals, which can fail in many ways
        text = shorten(str(error) or repr(error), quote=False)
        raise ConfigError(f"{source}: {text}") from error


def _is_section(key: str, value: object, source: str) -> ConfigError:
    fix = "Set the keys in it, or remove it."
    return ConfigError(f"{source} sets {key} to {shorten(value)}, but it is a section. {fix}")


def _unknown_key(key: str, value: object, cfg: CfgNode, source: str) -> ConfigError:
    near = difflib.get_close_matches(key, [name for name, _ in leaves(cfg)], n=3, cutoff=0.6)
    fix = f"Did you mean {' or '.join(near)}?" if near else "Remove it."
    found = f"{source} sets {shorten(key, quote=False)} to {shorten(value)}"
    return ConfigError(f"{found}, a key that does not exist. {fix}")


@contextmanager
def _other_types(cfg: CfgNode, values: dict[str, object]) -> Iterator[None]:
    """Let the block merge those of ``values`` that Detectron2 refuses for their type alone: a whole
    number for a fraction, as in "SOLVER.EPOCHS 12", and a dataset's name for a tuple of it."""
    convert: dict[str, Callable[[Any], Any]] = {}
    for key, written in values.items():
        value = CfgNode._decode_cfg_value(written)
        if type(value) is int and type(get_key(cfg, key)) is float:
            convert[key] = float
            set_key(cfg, key, 0)
        elif type(value) is str and key in DATASET_KEYS:
            convert[key] = lambda name: (name,)
            set_key(cfg, key, "")
    yield
    for key, function in convert.items():
        set_key(cfg, key, function(get_key(cfg, key)))
