"""Which images and objects are trained on, as MMDetection's ``CocoDataset`` chooses them."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

MIN_IMAGE_SIDE = 32  # pixels
MIN_OBJECT_SIDE = 1  # pixels of the image file


def filter_dataset(dicts: Sequence[dict[str, Any]], empty_too: bool = False) -> list[dict]:
    """Leave out images with a side below ``MIN_IMAGE_SIDE`` and those without annotations, and
    objects that are narrower than ``MIN_OBJECT_SIDE`` or lie outside their image. Images of which
    no object is left, and those with crowds alone, are kept as background.

    Source: ``CocoDataset.filter_data`` and ``parse_data_info`` of MMDetection 3.3.0. Its rule for
    an annotated area of 0 is left out: Detectron2 does not load areas.

    Args:
        dicts: in Detectron2's dataset format; they stay as they are.
        empty_too: keep images without annotations.
    """
    kept, objects = [], [0, 0]
    for record in dicts:
        annotations = record.get("annotations")
        if annotations is None:  # of another kind: Detectron2 takes it beside the others
            kept.append(record)
            continue
        if min(record["width"], record["height"]) < MIN_IMAGE_SIDE:
            continue
        if not annotations and not empty_too:
            continue
        usable = [annotation for annotation in annotations if is_usable(annotation, record)]
        kept.append({**record, "annotations": usable})
        for place, listed in enumerate((annotations, usable)):
            objects[place] += sum(not annotation.get("iscrowd") for annotation in listed)
    # Once, as Detectron2 logs its own table of these images: the schedule counts them first.
    log_first_n(
        logging.INFO,
        f"Training on {len(kept)} of {len(dicts)} images and on {objects[1]} of their {objects[0]} "
        "objects",
        name=__name__,
        key="message",
    )
    return kept


def is_usable(annotation: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether an annotation of ``record`` is wide and high enough and overlaps its image."""
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:  # as COCO has it: a million conversions less
        x, y, width, height = annotation["bbox"]
    else:  # rotated boxes convert to corners alone
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
    overlaps = x < record["width"] and y < record["height"] and x + width > 0 and y + height > 0
    return overlaps and min(width, height) >= MIN_OBJECT_SIDE
