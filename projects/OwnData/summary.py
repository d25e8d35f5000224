"""Measure the objects of a dataset, also as a config's input size and anchors see them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode
from tabulate import tabulate

from .source import short_name

PERCENTILES = (5, 50, 95)
TINY_SIDE = 2.0  # pixels of the image file
MOST_CLASSES = 20  # in a table
LABELS = {  # of measures whose names do not say it all
    "crowds": "crowds besides",
    "tiny_boxes": f"boxes narrower or lower than {TINY_SIDE:g} pixels",
    "sides": "box side in pixels (5th, 50th, 95th percentile)",
    "resized_sides": "box side in the model's input (5th, 50th, 95th percentile)",
    "below_smallest_anchor": "share of boxes below the smallest anchor",
    "above_largest_anchor": "share of boxes above the largest anchor",
}


def data_summary(name: str, cfg: CfgNode) -> dict[str, Any]:
    """Count the images and objects of a registered dataset, and measure its objects.

    The side of an object is the square root of its box's width times height. Crowds are counted but
    not measured.

    Returns:
        Plain values, which are images, images_without_annotations, boxes, crowds, boxes_per_class
        by name, tiny_boxes (narrower or lower than 2 pixels), duplicate_boxes (same class, place);
        ``sides`` and ``resized_sides``, the 5th, 50th and 95th percentiles in pixels of the image
        file and of the model's input in evaluation; smallest_anchor, largest_anchor, and the shares
        of objects below and above them. Percentiles and shares are None without boxes.
    """
    records = DatasetCatalog.get(name)
    annotations = [record.get("annotations", []) for record in records]
    objects = [[a for a in of_image if not a.get("iscrowd")] for of_image in annotations]
    counts = list(map(len, objects))
    flat = list(chain.from_iterable(objects))
    labels = [a["category_id"] for a in flat]
    boxes = _boxes(flat)
    images = np.repeat(np.arange(len(records)), counts).tolist()
    places = set(zip(images, labels, *np.rint(boxes.T).tolist(), strict=True))
    sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
    resized = np.sqrt(object_sizes(records, cfg).prod(axis=1))
    anchors = [size for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES for size in level]
    per_class, classes = Counter(labels), MetadataCatalog.get(name).get("thing_classes") or []
    return {
        "images": len(records),
        "images_without_annotations": sum(not of_image for of_image in annotations),
        "boxes": len(boxes),
        "crowds": sum(map(len, annotations)) - len(boxes),
        "boxes_per_class": {c: per_class[i] for i, c in enumerate(classes)},
        "tiny_boxes": int((boxes[:, 2:].min(axis=1) < TINY_SIDE).sum()),
        "duplicate_boxes": len(boxes) - len(places),
        "sides": _percentiles(sides),
        "resized_sides": _percentiles(resized),
        "smallest_anchor": min(anchors),
        "largest_anchor": max(anchors),
        "below_smallest_anchor": float((resized < min(anchors)).mean()) if len(boxes) else None,
        "above_largest_anchor": float((resized > max(anchors)).mean()) if len(boxes) else None,
    }


def object_sizes(records: Sequence[Mapping[str, Any]], cfg: CfgNode) -> np.ndarray:
    """The width and height of each object, no crowd, of a dataset's ``records`` in the model's
    input in evaluation, (N, 2)."""
    of_images = []
    for record in records:
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd")]
        of_images.append(_boxes(objects)[:, 2:] * _scale(record, cfg))
    return np.concatenate([*of_images, np.zeros((0, 2))])


def _boxes(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Their boxes as x, y, width and height, (N, 4)."""
    listed = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS) for a in annotations]
    return np.array(listed, np.float64).reshape(-1, 4)


def summary_table(names: Sequence[str], cfg: CfgNode) -> str:
    """A table of the :func:`data_summary` of several datasets, side by side."""
    found = [data_summary(name, cfg) for name in names]
    totals: Counter[str] = Counter()
    for summary in found:
        totals.update(summary["boxes_per_class"])
    rows: list[list[Any]] = []
    for key in found[0]:
        if key != "boxes_per_class":
            rows.append([_label(key), *(_shown(key, summary[key]) for summary in found)])
            continue
        for name, _ in totals.most_common(MOST_CLASSES):
            rows.append([f"boxes of {name}", *(s[key].get(name, 0) for s in found)])
        if len(totals) > MOST_CLASSES:
            rows.append([f"(and {len(totals) - MOST_CLASSES} other classes)"])
    return tabulate(rows, ["", *map(short_name, names)], disable_numparse=True)


def readable(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A :func:`data_summary` for people: texts by label, and counts by class."""
    return {_label(k): v if isinstance(v, dict) else _shown(k, v) for k, v in summary.items()}


def _label(measure: str) -> str:
    return LABELS.get(measure, measure.replace("_", " "))


def _shown(measure: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{number:.0f}" for number in value)
    form = ".0%" if measure.startswith(("below", "above")) else ".0f"
    return "" if value is None else format(value, form)


def _scale(record: Mapping[str, Any], cfg: CfgNode) -> float:
    if not cfg.INPUT.MIN_SIZE_TEST:  # Detectron2 then leaves images as they are
        return 1.0
    height, width = record["height"], record["width"]
    size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return ResizeShortestEdge.get_output_shape(height, width, *size)[0] / height


def _percentiles(values: np.ndarray) -> list[float] | None:
    return [float(v) for v in np.percentile(values, PERCENTILES)] if len(values) else None
