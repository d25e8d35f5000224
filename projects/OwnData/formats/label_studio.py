"""Label Studio's JSON export and its short form, JSON-MIN."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..coco_file import CocoFile
from ..source import Source
from .common import IMAGES, Picture, ellipse, make_coco, mask, polygon, reading

NAME = "Label Studio"


def is_label_studio(content: Any) -> bool:
    """Whether JSON is of this format."""
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        return False
    return any("data" in task or _regions(task) for task in content)


def read(source: Source, content: Sequence[Mapping[str, Any]]) -> CocoFile:
    """The latest annotation of each task that was not skipped; a task without one is not used.
    Predictions are not annotations. Of several labels of a region, the first counts."""
    left_out: Counter[str] = Counter()
    pictures = []
    for number, task in enumerate(content):
        with reading(f"{source.file}: task {task.get('id', number)}"):
            data, regions = task, _regions(task)
            if "data" in task:
                done = [a for a in task["annotations"] if not a.get("was_cancelled")]
                if not done:
                    left_out["tasks without annotation"] += 1
                    continue
                last = max(done, key=lambda annotation: str(annotation.get("created_at", "")))
                entries = [entry for entry in last["result"] if "value" in entry]
                data, regions = task["data"], [{**entry, **entry["value"]} for entry in entries]
            size, objects = None, []
            for region in regions:
                if "original_width" in region:
                    size = int(region["original_width"]), int(region["original_height"])
                    objects.append(_object(region, size))
            pictures.append(Picture(_image(data, regions), size, objects))
    return make_coco(source, NAME, pictures, left_out)


def _regions(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The regions of a task of JSON-MIN, of all controls."""
    entries = [entry for value in task.values() if isinstance(value, list) for entry in value]
    return [entry for entry in entries if isinstance(entry, dict) and "original_width" in entry]


def _image(data: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> str:
    """The address of the image: that which the regions are of, or the first that looks like one."""
    names = [*(str(region.get("to_name")) for region in regions), "image"]
    for name in [*names, *data]:
        text = str(data.get(name) or "")
        is_image = os.path.splitext(text.partition("?")[0])[1].lower() in IMAGES
        if is_image or "/data/" in text or (text and name in names):
            return text
    raise ValueError("it has no image")


def _object(region: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any] | str:
    """A region in percent of the image's size as an object of a Picture."""
    labels = next((v for k, v in region.items() if k.endswith("labels") and v), None)
    if labels is None:
        return ""
    width, height = size
    x, y, w, h, rx, ry = (
        float(region.get(name, 0)) * (size[i % 2] / 100)
        for i, name in enumerate(("x", "y", "width", "height", "radiusX", "radiusY"))
    )
    turned = float(region.get("rotation") or 0)
    if "points" in region:
        made = polygon(
            value * size[axis] / 100
            for point in region["points"]
            for axis, value in enumerate(point)
        )
    elif region.get("format") == "rle":
        pixels = decode(region["rle"], width * height * 4).reshape(height, width, 4)
        made = mask(pixels[..., 3], 0, 0, size)
    elif "radiusX" in region:
        made = ellipse(x, y, rx, ry, turned)
    elif {"x", "y", "width", "height"} <= region.keys() and not turned and w and h:
        made = {"bbox": [x, y, w, h]}
    else:
        return "rotated boxes" if turned else f"regions of {region.get('type', 'points')}"
    return {"class": str(labels[0]), **made}


def decode(encoded: Sequence[int], count: int) -> np.ndarray:
    """``count`` bytes from the run-length code of brushes, that of ``@thi.ng/rle-pack``.

    The bits, the highest first: the number of values (32), the bits of a value less 1 (5), four
    times the bits of a length less 1 (4 each). Then blocks: is it a run (1), which of the four
    widths (2), its length less 1, and the one value of the run, or all values.

    Raises:
        ValueError: the code is cut off, or of another length.
    """
    bits = np.unpackbits(np.array(encoded, np.uint8))
    place = 0

    def read(width: int) -> int:
        nonlocal place
        place += width
        if place > len(bits):
            raise ValueError("its RLE is cut off")
        return int("".join(map(str, bits[place - width : place])), 2)

    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    if total != count or word != 8:
        raise ValueError(f"its RLE is of {total} values of {word} bits, not of {count} of 8")
    values, at = np.zeros(count, np.uint8), 0
    while at < count:
        is_run = read(1)
        length = read(widths[read(2)]) + 1
        if at + length > count:
            raise ValueError("its RLE is too long")
        values[at : at + length] = read(8) if is_run else [read(8) for _ in range(length)]
        at += length
    return values
