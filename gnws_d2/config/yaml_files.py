"""Reading a YAML config with the files it is based on, in bounded time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import ConfigError, shorten
from .files import CONFIG_ROOT, resolve_config_file

BASE_KEY = "_BASE_"  # Detectron2's
MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # keys and values, each alias counted as what it stands for
MAX_DEPTH = 50
MAX_TEXT = 20_000  # characters of a value: yacs parses each as a Python literal


def read_config(file: str) -> dict[str, Any]:
    """The content of a config file, merged into that of the files that its ``_BASE_`` names.

    ``_BASE_`` holds a name or a list of names: of a file, relative to the one that names it, or
    else of a packaged config, such as "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml".

    Raises:
        ConfigError: a file is missing, is not a mapping in valid YAML, sets a key twice, is too
            large once its aliases are expanded, or is based on itself.
    """
    merged: dict[str, Any] = {}
    for path, loaded in _files(Path(file)):
        _merge(loaded, merged, path)
    return merged


def own_files(file: str) -> tuple[list[dict[str, Any]], str]:
    """The contents of a config file and of its bases, each alone, without packaged ones, and the
    path of the packaged one that it is or builds on; "" where there is none."""
    found = resolve_config_file(file)
    own, packaged = [], ""
    for path, loaded in _files(Path(found)) if found else ():
        if path.resolve().is_relative_to(CONFIG_ROOT.resolve()):
            packaged = str(path)
        else:
            own.append(loaded)
    return own, packaged


def _files(file: Path, based_on_it: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The content of each file that ``file`` is based on, and then its own."""
    if any(os.path.samefile(file, other) for other in based_on_it):
        chain = " -> ".join(str(f) for f in (*based_on_it, file))
        raise ConfigError(f"{chain}: {BASE_KEY} leads back to a file it started from. Remove it.")
    loaded = _load(file)
    for base in _bases(loaded, file):
        yield from _files(_find_base(base, file), (*based_on_it, file))
    yield file, loaded


def _bases(loaded: dict[str, Any], file: Path) -> list[str]:
    """The names under ``_BASE_``, which is removed."""
    bases = loaded.pop(BASE_KEY, [])
    bases = bases if isinstance(bases, list) else [bases]
    for base in bases:
        if not isinstance(base, str):
            raise ConfigError(f"{file}: {BASE_KEY} is {shorten(base)}. Set it to a file's name.")
    return bases


def _find_base(name: str, file: Path) -> Path:
    beside = file.parent / Path(name).expanduser()
    for found in (beside, CONFIG_ROOT / name):
        if os.path.isfile(found):
            return found
    raise ConfigError(
        f"{file}: {BASE_KEY} is {shorten(name)}, which is neither a file beside it nor a packaged "
        "config. Correct the name; a file of the network has to be downloaded first."
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{file} has {size} bytes, too many for a config ({MAX_BYTES}).")
        loader = yaml.SafeLoader(file.read_bytes())
        try:
            root = loader.get_single_node()
            if isinstance(root, yaml.MappingNode):
                _count(root, file, {}, ())
                CfgNode(loaded := loader.construct_document(root))  # refuses dates, sets, ...
                return loaded
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise ConfigError(f"{file} is nested too deeply for a config.") from error
    except Exception as error:  # constructors of YAML's types also raise ValueError, TypeError, ...
        text = shorten(str(error), quote=False)
        raise ConfigError(f"{file} is not valid YAML of a config: {text}") from error
    raise ConfigError(f"{file} is empty or a list, not a config. Write KEY: VALUE lines.")


def _count(
    node: yaml.Node, file: Path, counted: dict[int, int], inside: tuple[yaml.Node, ...]
) -> int:
    """The number of nodes of ``node`` with all aliases expanded, without expanding them."""
    if any(node is outer for outer in inside):
        raise ConfigError(f"{file}: an alias in line {_line(node)} holds itself. Remove it.")
    if len(inside) > MAX_DEPTH:
        raise ConfigError(f"{file} is nested too deeply for a config, in line {_line(node)}.")
    if id(node) not in counted:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_names(node, file)
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif len(node.value) > MAX_TEXT:
            raise ConfigError(f"{file}: the value in line {_line(node)} is too long for a config.")
        inside = (*inside, node)
        counted[id(node)] = 1 + sum(_count(child, file, counted, inside) for child in children)
        if counted[id(node)] > MAX_NODES:
            raise ConfigError(
                f"{file}: the value in line {_line(node)} has more than {MAX_NODES} parts once its "
                "aliases (*name) are expanded. Remove aliases."
            )
    return counted[id(node)]


def _check_names(node: yaml.MappingNode, file: Path) -> None:
    names = set()
    for key, _ in node.value:
        if key.tag != "tag:yaml.org,2002:merge" and key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(
                f"{file}: the key {shorten(str(key.value))} in line {_line(key)} is not a name. "
                "Put it in quotes, or remove it."
            )
        if key.value in names:
            raise ConfigError(
                f"{file} sets {shorten(key.value, quote=False)} twice in one section, again in "
                f"line {_line(key)}. Remove one."
            )
        names.add(key.value)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _merge(new: dict[str, Any], into: dict[str, Any], file: Path) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            _merge(value, into.setdefault(key, {}), file)
        elif key in into and isinstance(value, dict) != isinstance(into[key], dict):
            kinds = ("a section", "a value")
            here, below = kinds if isinstance(value, dict) else kinds[::-1]
            raise ConfigError(
                f"{file} makes {key} {here}, but it is {below} in a file of its {BASE_KEY}."
            )
        else:
            into[key] = value
