"""LazyConfigs, Detectron2's configs in Python, with overrides that must hit a key."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import LazyConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, Node
from omegaconf.errors import OmegaConfBaseException

from gnws_d2.config import resolve_config_file
from gnws_d2.errors import ConfigError


def load_lazy_config(file: str, opts: Sequence[str] = ()) -> Any:
    """The config that a Python file describes. The file is a program, and it runs.

    Args:
        file: a path, or the name of a packaged config such as "Digits/fcos_R_18_FPN_gn_ws.py".
        opts: overrides, each "key=value". "+key=value" adds a key; without the plus, a key that
            does not exist is an error.

    Raises:
        ConfigError: there is no such Python file, or an override cannot be applied.
    """
    if not file.endswith(".py"):
        raise ConfigError(
            f"{file} is not a .py file. Use train_net.py for a .yaml config: as a LazyConfig, "
            "Detectron2 would execute what it says in !!python tags."
        )
    cfg = LazyConfig.load(resolve_config_file(file))
    known = [key for key, _ in _items(cfg)]
    for word in opts:
        key, equals, _ = word.partition("=")
        if not equals:
            raise ConfigError(f"an override has the form key=value; found {word!r}.")
        if not key.startswith("+") and key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            fix = f"Did you mean {' or '.join(near)}?" if near else "Correct it."
            raise ConfigError(f"the config has no key {key}. {fix} To add it, write +{word}.")
    try:
        return LazyConfig.apply_overrides(cfg, list(opts))
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"the overrides {' '.join(opts)}: {error}") from error


def values(cfg: Any) -> dict[str, Any]:
    """The values of a LazyConfig by dotted key, objects as text."""
    found = {}
    for key, node in _items(cfg):
        if not isinstance(node, (DictConfig, ListConfig)):
            value = node._value() if isinstance(node, Node) else node
            if not isinstance(value, (int, float, str, type(None))):
                name = getattr(value, "__qualname__", None) or repr(value)
                value = re.sub(" at 0x[0-9a-f]+", "", name)
            found[key] = value
    return found


def _items(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, node) of everything in a LazyConfig."""
    children: Any = ()
    if isinstance(node, DictConfig):
        children = node.items_ex(resolve=False)
    elif isinstance(node, ListConfig):
        children = enumerate(node._get_node(i) for i in range(len(node)))
    for name, value in children:
        yield f"{prefix}{name!s}", value
        yield from _items(value, f"{prefix}{name!s}.")
