"""VGG Image Annotator, versions 1 and 2: a project, exported annotations, and their CSV."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gnws_d2.errors import DatasetError

from ..coco_file import CocoFile
from ..source import Source
from .common import ONLY_CLASS, Picture, ellipse, make_coco, numbers, polygon, reading

NAME = "VIA"
CLASS_ATTRIBUTES = ("class", "label", "name", "type", "category")
# By VIA's key: the name of an image, and the shape and the attributes of each region.
Images = dict[str, tuple[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]]]


def is_via(content: Any) -> bool:
    """Whether JSON is of this format."""
    if not isinstance(content, dict) or not content:
        return False
    entries = content.get("_via_img_metadata", content)
    values = entries.values() if isinstance(entries, dict) else ()
    return all(isinstance(v, dict) and {"filename", "regions"} <= v.keys() for v in values)


def read(source: Source, content: Mapping[str, Any]) -> CocoFile:
    """A project or its exported annotations. An image without regions is background."""
    images: Images = {}
    for key, image in content.get("_via_img_metadata", content).items():
        with reading(f"{source.file}: {key!r}"):
            regions = image["regions"]
            regions = regions.values() if isinstance(regions, dict) else regions
            pairs = [(r["shape_attributes"], dict(r["region_attributes"])) for r in regions]
            images[key] = str(image["filename"]), pairs
    attributes = content.get("_via_attributes", {})
    listed = attributes.get("region", {}) if isinstance(attributes, dict) else {}
    return _made(source, images, listed)


def read_rows(source: Source, rows: Iterable[Mapping[str, str]]) -> CocoFile:
    """The rows of an exported CSV, one a region."""
    images: Images = {}
    for number, row in enumerate(rows, 2):
        with reading(f"{source.file}: row {number}"):
            key = row["filename"] + row.get("file_size", "")
            regions = images.setdefault(key, (row["filename"], []))[1]
            # VIA writes "undefined" where an attribute was never set.
            texts = (row[f"region_{kind}attributes"] for kind in ("shape_", ""))
            shape, values = (json.loads(t.replace(":undefined", ":null")) for t in texts)
            regions += [(shape, values)] if shape else []
    return _made(source, images, {})


def _made(source: Source, images: Images, listed: Mapping[str, Any]) -> CocoFile:
    every = [values for _, regions in images.values() for _, values in regions]
    name = _class_attribute(source, every)
    pictures = []
    for file_name, regions in images.values():
        picture = Picture(file_name)
        for number, (shape, values) in enumerate(regions):
            with reading(f"{source.file}: {file_name!r}, region {number}"):
                if isinstance(made := _shape(shape), dict):
                    made["class"] = ONLY_CLASS if name is None else _label(values[name])
                picture.objects.append(made)
        pictures.append(picture)
    with reading(f"{source.file}: _via_attributes"):
        options = list((listed.get(name) or {}).get("options") or ())
    return make_coco(source, NAME, pictures, classes=options)


def _class_attribute(source: Source, every: Sequence[Mapping[str, Any]]) -> str | None:
    """The attribute that is the class; None if regions have no attributes.

    Raises:
        DatasetError: several could be.
    """
    counts = Counter(name for values in every for name, value in values.items() if value)
    common = [name for name, count in counts.items() if count == len(every)]
    named = [name for word in CLASS_ATTRIBUTES for name in common if name.lower() == word]
    if named or len({repr([values[name] for values in every]) for name in common}) == 1:
        return (named or common)[0]
    if counts:
        found = ", ".join(f"{name!r} of {count}" for name, count in counts.items())
        raise DatasetError(
            f"{source.file}: the class is unknown: {len(every)} regions have the attributes "
            f"{found}. Give all regions one named 'class'."
        )
    return None


def _label(value: Any) -> str:
    """A class; a checkbox has it as a key."""
    if isinstance(value, dict):
        checked = [key for key, is_set in value.items() if is_set]
        if len(checked) != 1:
            raise ValueError(f"its class is {' and '.join(checked) or 'not set'}, but needs one")
        value = checked[0]
    return str(value).strip()


def _shape(shape: Mapping[str, Any]) -> dict[str, Any] | str:
    """A shape as an object of a Picture, without its class."""
    kind = shape["name"]
    if kind == "rect":
        return {"bbox": numbers(shape, "x y width height")}
    if kind == "polygon":
        pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return polygon(value for pair in pairs for value in pair)
    if kind == "circle":
        return ellipse(*numbers(shape, "cx cy r r"))
    if kind == "ellipse":
        turn = math.degrees(float(shape.get("theta", 0)))
        return ellipse(*numbers(shape, "cx cy rx ry"), turn)
    return f"shapes {kind!r}"
