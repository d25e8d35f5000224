"""Values of a config by their dotted key, such as "SOLVER.MAX_ITER"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode

from .keys import DATASET_KEYS, META_ARCHITECTURE


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, value) of every value."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def get_key(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key; None where there is no such key."""
    node: Any = cfg
    for word in key.split("."):
        node = node.get(word) if isinstance(node, CfgNode) else None
    return node


def set_key(cfg: CfgNode, key: str, value: object) -> None:
    """Set a dotted key that exists."""
    section, _, name = key.rpartition(".")
    (get_key(cfg, section) if section else cfg)[name] = value


def dataset_names(cfg: CfgNode, keys: Sequence[str] = DATASET_KEYS) -> list[str]:
    """The datasets that ``keys`` of ``cfg`` name, each once."""
    return list(dict.fromkeys(name for key in keys for name in get_key(cfg, key) or ()))


def built_architecture(cfg: CfgNode) -> str:
    """MODEL.META_ARCHITECTURE, seen through this package's wrapper."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.WS.META_ARCHITECTURE if name == META_ARCHITECTURE else name
