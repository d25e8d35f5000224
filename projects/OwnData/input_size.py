"""An input size at which a model can see the objects of one's own data."""

import logging
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from gnws_d2.config import get_key

from .source import is_source
from .summary import object_sizes

logger = logging.getLogger(__name__)

KEYS = [f"INPUT.{end}_SIZE_{use}" for use in ("TRAIN", "TEST") for end in ("MIN", "MAX")]
SMALL, WANTED = 16.0, 24.0  # pixels: the median side of objects in the model's input
LARGEST = 800  # of the shorter side, that of the published models
MOST, LEAST = 2.5, 1.2  # factors: a step takes the square of it


def input_settings(cfg: CfgNode, explicit: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Larger inputs where the objects of the registered data in DATASETS.TRAIN would be small in
    those of ``cfg``, as values of their keys, and the reason. Images are not enlarged. What remains
    small is warned of.

    Args:
        explicit: the keys that the user set, which stay.
    """
    records = [r for n in cfg.DATASETS.TRAIN if is_source(n) for r in DatasetCatalog.get(n)]
    sides = np.sqrt(object_sizes(records, cfg).prod(axis=1))
    if not len(sides) or not (now := cfg.INPUT.MIN_SIZE_TEST):
        return
    median, shorter = np.median(sides), np.median([min(r["height"], r["width"]) for r in records])
    factor = min(WANTED / median, MOST, LARGEST / now, shorter / now)
    if median >= SMALL or factor < LEAST or set(KEYS).intersection(explicit):
        factor = 1
    else:
        values = {key: _scaled(get_key(cfg, key), factor) for key in KEYS}
        yield f"Half of the objects are below {median:.0f} pixels in inputs of {now}", values
    if factor * median < SMALL:
        logger.warning(
            "Half of the objects are below %.0f pixels in the model's input, where few are found. "
            "Set a larger INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST, or cut the images into "
            "tiles: gnws convert --tile.",
            factor * median,
        )


def _scaled(size: Any, factor: float) -> Any:
    """A multiple of 32, or a tuple of them."""
    if isinstance(size, (tuple, list)):
        return tuple(_scaled(n, factor) for n in size)
    return max(1, round(size * factor / 32)) * 32
