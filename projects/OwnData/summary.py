"""What a dataset holds, and what a config's input size and anchors make of its objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode
from tabulate import tabulate

PERCENTILES = (5, 50, 95)
TINY_SIDE = 2.0  # pixels of the image file
MOST_CLASSES = 20  # that a table lists


def data_summary(name: str, cfg: CfgNode) -> dict[str, Any]:
    """Count the images and objects of a registered dataset, and measure its objects.

    A side is the square root of a box's width times height. Crowds are counted, and not measured.

    Returns:
        plain values: images, images_without_annotations, boxes, crowds, boxes_per_class by name,
        tiny_boxes (a side below 2 pixels), duplicate_boxes (of one class and place); ``sides`` and
        ``resized_sides``, their 5, 50 and 95 percentiles in pixels of the file and of the input of
        evaluation; smallest_anchor, largest_anchor, and the shares of the objects that are smaller
        and larger than those. Percentiles and shares are None without boxes.
    """
    records = DatasetCatalog.get(name)
    classes = MetadataCatalog.get(name).get("thing_classes") or []
    per_class: Counter[int] = Counter()
    sides, scales, shortest = [], [], []
    empty = crowds = duplicates = 0
    for record in records:
        annotations = record.get("annotations", [])
        objects = [a for a in annotations if not a.get("iscrowd")]
        empty += not annotations
        crowds += len(annotations) - len(objects)
        if not objects:
            continue
        per_class.update(a["category_id"] for a in objects)
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS) for a in objects],
            np.float64,
        )
        places = Counter(
            (a["category_id"], *np.rint(box).tolist())
            for a, box in zip(objects, boxes, strict=True)
        )
        duplicates += sum(count - 1 for count in places.values())
        sides.append(np.sqrt(boxes[:, 2] * boxes[:, 3]))
        shortest.append(boxes[:, 2:].min(axis=1))
        scales.append(np.full(len(boxes), _scale(record, cfg)))
    side = np.concatenate(sides) if sides else np.zeros(0)
    resized = side * (np.concatenate(scales) if scales else 1)
    anchors = [size for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES for size in level]
    return {
        "images": len(records),
        "images_without_annotations": empty,
        "boxes": len(side),
        "crowds": crowds,
        "boxes_per_class": {c: per_class[i] for i, c in enumerate(classes)},
        "tiny_boxes": int(sum((s < TINY_SIDE).sum() for s in shortest)),
        "duplicate_boxes": duplicates,
        "sides": _percentiles(side),
        "resized_sides": _percentiles(resized),
        "smallest_anchor": min(anchors),
        "largest_anchor": max(anchors),
        "below_smallest_anchor": float((resized < min(anchors)).mean()) if len(side) else None,
        "above_largest_anchor": float((resized > max(anchors)).mean()) if len(side) else None,
    }


def summary_table(names: Sequence[str], cfg: CfgNode) -> str:
    """:func:`data_summary` of datasets side by side."""
    found = [data_summary(name, cfg) for name in names]
    rows: list[list[Any]] = [
        [label, *(summary[key] for summary in found)]
        for label, key in (
            ("images", "images"),
            ("images without annotations", "images_without_annotations"),
            ("boxes", "boxes"),
            ("crowds besides", "crowds"),
            (f"boxes narrower than {TINY_SIDE:g} pixels", "tiny_boxes"),
            ("duplicate boxes", "duplicate_boxes"),
        )
    ]
    totals: Counter[str] = Counter()
    for summary in found:
        totals.update(summary["boxes_per_class"])
    for label, _ in totals.most_common(MOST_CLASSES):
        rows.append([f"boxes of {label}", *(s["boxes_per_class"].get(label, 0) for s in found)])
    if len(totals) > MOST_CLASSES:
        rows.append([f"(and {len(totals) - MOST_CLASSES} other classes)"])
    size = f"{cfg.INPUT.MIN_SIZE_TEST}/{cfg.INPUT.MAX_SIZE_TEST}"
    for label, key in (
        ("side: 5%, median, 95% (pixels)", "sides"),
        (f"the same, resized to {size}", "resized_sides"),
    ):
        rows.append([label, *(_joined(summary[key]) for summary in found)])
    for label, key, bound in (
        ("below the smallest anchor", "below_smallest_anchor", "smallest_anchor"),
        ("above the largest anchor", "above_largest_anchor", "largest_anchor"),
    ):
        shares = ["" if s[key] is None else f"{100 * s[key]:.0f}%" for s in found]
        rows.append([f"{label}, {found[0][bound]:g}", *shares])
    heads = [name.rsplit("/", 2)[-2:] for name in names]
    return tabulate(rows, ["", *("/".join(parts) for parts in heads)], disable_numparse=True)


def _scale(record: dict[str, Any], cfg: CfgNode) -> float:
    if not cfg.INPUT.MIN_SIZE_TEST:  # Detectron2 then leaves images as they are
        return 1.0
    height, width = record["height"], record["width"]
    size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return ResizeShortestEdge.get_output_shape(height, width, *size)[0] / height


def _percentiles(values: np.ndarray) -> list[float] | None:
    return [float(v) for v in np.percentile(values, PERCENTILES)] if len(values) else None


def _joined(values: list[float] | None) -> str:
    return ", ".join(f"{value:.0f}" for value in values or ())
