"""What a config sets beyond the defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode, get_cfg

from .access import leaves
from .keys import add_gnws_config

# The functions that have added keys in this process, in order.
_used_add_configs: dict[Callable[[CfgNode], None], None] = {add_gnws_config: None}


def remember(add_configs: Sequence[Callable[[CfgNode], None]]) -> None:
    """From now on, what these functions add are defaults."""
    _used_add_configs.update(dict.fromkeys(add_configs))


def portable_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` to save, without the keys that have their default value of this package and
    of the ``add_configs`` that :func:`load_config` was called with.

    Detectron2's plain ``get_cfg()`` reads it where no such key is set; :func:`load_config`, and any
    program that adds the same keys, reads it in any case.
    """
    own = {key for key, _ in leaves(get_cfg())}
    values = dict(leaves(cfg))
    defaults = _all_defaults().items()
    unused = {k for k, v in defaults if k not in own and k in values and values[k] == v}
    return _without(cfg.clone(), unused)


def changed_keys(cfg: CfgNode) -> dict[str, object]:
    """The keys of ``cfg`` whose values are not the defaults, with their values. The defaults are
    Detectron2's, this package's, and those of the ``add_configs`` of :func:`load_config`."""
    known = _all_defaults()
    return {k: v for k, v in leaves(cfg) if k not in known or known[k] != v}


def _all_defaults() -> dict[str, object]:
    defaults = get_cfg()
    for add_config in _used_add_configs:
        add_config(defaults)
    return dict(leaves(defaults))


def _without(node: CfgNode, keys: set[str], prefix: str = "") -> CfgNode:
    for name, value in list(node.items()):
        if isinstance(value, CfgNode) and value:
            _without(value, keys, f"{prefix}{name}.")
        if f"{prefix}{name}" in keys or value == CfgNode():
            del node[name]
    return node
