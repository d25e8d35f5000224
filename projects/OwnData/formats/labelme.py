"""LabelMe: a JSON file an image, with shapes of pixels."""

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..coco_file import CocoFile, read_json
from ..source import Source
from .common import Picture, box, ellipse, make_coco, mask, polygon, reading, visible

NAME = "LabelMe"


def is_labelme(content: Any) -> bool:
    """Whether JSON is of this format."""
    return isinstance(content, dict) and "shapes" in content and "images" not in content


def read(source: Source, content: Any = None) -> CocoFile:
    """The JSON files of a folder, or the ``content`` of one. Polygons of one label and ``group_id``
    are one object, as in LabelMe's own converter. An image without a JSON file is not used: it may
    be one that is not annotated yet."""
    left_out: Counter[str] = Counter()
    pictures = []
    for file in visible(source.file, ".json") if content is None else [source.file]:
        content = read_json(file) if source.file.is_dir() else content
        if not is_labelme(content):
            left_out["JSON files of another kind"] += 1
            continue
        with reading(file):
            sides = content.get("imageWidth"), content.get("imageHeight")
            size = (int(sides[0]), int(sides[1])) if all(sides) else None
            name = content.get("imagePath") or file.stem
            picture = Picture(str(name), size, stem=file.stem)
            for number, shape in enumerate(content["shapes"]):
                with reading(f"{file}: shapes[{number}]"):
                    picture.objects.append(_object(shape, size))
        pictures.append(picture)
    return make_coco(source, NAME, pictures, left_out)


def _object(shape: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any] | str:
    """A shape as an object of a Picture."""
    points = [(float(x), float(y)) for x, y in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    (left, right), (top, bottom) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    if shape["label"] == "__ignore__":
        kind = "__ignore__"
    if kind == "rectangle":
        made: dict[str, Any] = {"bbox": box(left, top, right, bottom)}
    elif kind == "polygon":
        made = polygon(value for point in points for value in point)
    elif kind == "circle":  # its center, and a point on it
        radius = math.dist(*points)
        made = ellipse(*points[0], radius, radius)
    elif kind == "mask" and size:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            made = mask(np.asarray(image.convert("L")), int(left), int(top), size)
    else:
        return f"shapes {kind!r}"
    return {"class": str(shape["label"]), "group": shape.get("group_id"), **made}
