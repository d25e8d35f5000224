"""Anchors that fit the objects of one's own data, for a detector that has learned none."""

import math
from collections.abc import Collection, Iterator
from itertools import product
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from gnws_d2.checkpoint import local_path
from gnws_d2.checkpoint.provenance import ANCHORS
from gnws_d2.checkpoint.structure import build_on_meta

from .choose import DETECTOR, facts_of, start_of
from .source import is_source
from .summary import object_sizes

SIZES, RATIOS = ANCHORS
MOST_OBJECTS = 5000  # that are compared with anchors
GAIN = 0.03  # of the mean IoU, for which the anchors of the config are left
SCALES = np.geomspace(1 / 4, 4, 17)  # of all sizes
# Of three aspect ratios, height by width: that in the middle, and its factor to the others.
MIDDLES, SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0), (2.0, 3.0)


def anchor_settings(
    cfg: CfgNode, explicit: Collection[str], weights: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sizes and aspect ratios of anchors that suit the registered data in DATASETS.TRAIN, as
    values of their keys, and the reason; nothing where those of the config stay.

    Weights of a detector keep the anchors that their checkpoint names, else those of the config.
    For others, all sizes are scaled by the factor with the highest mean IoU with the objects in the
    model's input. The levels keep their proportions: sizes that follow the objects more closely put
    large ones on levels of small strides, which trained worse. The position counts: an anchor is
    off by a quarter of its level's stride in both directions, the mean over all places.

    Args:
        explicit: the keys that the user set, which stay.
        weights: what training starts from, as MODEL.WEIGHTS; also the checkpoint that it resumes.
    """
    names = [name for name in cfg.DATASETS.TRAIN if is_source(name)]
    generator, keys = cfg.MODEL.ANCHOR_GENERATOR, set(ANCHORS).difference(explicit)
    is_default = generator.NAME == "DefaultAnchorGenerator" and len(generator.ASPECT_RATIOS) == 1
    if not names or not keys or not is_default:
        return
    if start_of(weights) == DETECTOR:
        found = facts_of(local_path(weights))[1].anchors or {}
        reason = "The weights were trained with these anchors"
    else:
        strides = _strides(cfg)
        objects = np.concatenate([object_sizes(DatasetCatalog.get(n), cfg) for n in names])
        if len(generator.SIZES) != len(strides) or not len(objects):
            return
        found, reason = _best(cfg, objects[:: -(-len(objects) // MOST_OBJECTS)], strides, keys)
    if values := {key: value for key, value in found.items() if key in keys}:
        yield reason, values


def _strides(cfg: CfgNode) -> list[int]:
    """Those of the levels that have anchors; [] where there are no anchors."""
    model = build_on_meta(cfg)
    owner = getattr(model, "proposal_generator", None) or model
    generator = getattr(owner, "anchor_generator", None)
    return list(getattr(generator, "strides", ()))


def _best(
    cfg: CfgNode, objects: np.ndarray, strides: list[int], keys: Collection[str]
) -> tuple[dict[str, Any], str]:
    """The anchors with the highest mean IoU, as values of ``keys``, and why; none where those of
    the config are as good.

    Args:
        objects: (N, 2), width and height in the model's input.
    """
    sizes, (ratios,) = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    now = _mean_iou(objects, sizes, ratios, strides)
    best = sizes
    if SIZES in keys:
        tried = [[[float(f"{n * s:.3g}") for s in level] for level in sizes] for n in SCALES]
        ious = np.array([_mean_iou(objects, s, ratios, strides) for s in tried])
        # A factor of one level's distance to the next fits about as well: that nearest to 1.
        good = np.flatnonzero(ious > ious.max() - GAIN / 2)
        best = tried[good[np.abs(np.log(SCALES[good])).argmin()]]
    shapes = [list(ratios)]
    if RATIOS in keys and len(ratios) == 3:
        shapes += [[round(m / s, 3), m, m * s] for m, s in product(MIDDLES, SPREADS)]
    ious = np.array([_mean_iou(objects, best, shape, strides) for shape in shapes])
    # Other ratios only where they matter by themselves.
    chosen = ious.argmax() if ious.max() >= ious[0] + GAIN else 0
    found, shape = ious[chosen], shapes[chosen]
    if found < now + GAIN:
        return {}, ""
    reason = (
        f"The mean IoU of objects and anchors is {found:.2f} with others than {sizes} ({now:.2f})"
    )
    return {SIZES: best, RATIOS: [shape]}, reason


def _mean_iou(
    objects: np.ndarray, sizes: list[list[float]], ratios: list[float], strides: list[int]
) -> float:
    """The mean IoU of each object with its best anchor."""
    best = np.zeros(len(objects))
    for level, stride in zip(sizes, strides, strict=True):
        for size, ratio in product(level, ratios):
            anchor = np.array([size / math.sqrt(ratio), size * math.sqrt(ratio)])
            shared = np.minimum(np.minimum(objects, anchor), (objects + anchor) / 2 - stride / 4)
            common = shared.clip(min=0).prod(axis=1)
            best = np.maximum(best, common / (objects.prod(axis=1) + anchor.prod() - common))
    return float(best.mean())
