"""Pascal VOC (an XML file an image) and CVAT's "for images 1.1" (an XML file for all)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from gnws_d2.errors import DatasetError

from ..coco_file import CocoFile
from ..source import Source
from .common import (
    Picture,
    box,
    ellipse,
    make_coco,
    mask,
    names_on_disk,
    polygon,
    read_text,
    reading,
)

VOC, CVAT = "Pascal VOC", "CVAT XML"


def root_of(file: Path) -> ElementTree.Element:
    """The root element. Expat refuses entities that expand too far."""
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
        raise DatasetError(
            f"{file} is not valid XML ({error}): it is damaged or cut off. Fetch it again."
        ) from error


def _tag(file: Path) -> str:
    """The name of the root element, without reading on; "" if there is none."""
    try:
        return next(element.tag for _, element in ElementTree.iterparse(file, ["start"]))
    except (ElementTree.ParseError, OSError, StopIteration, LookupError, ValueError):
        return ""


def is_voc(file: Path) -> bool:
    """Whether a file is of Pascal VOC."""
    return _tag(file) == "annotation"


def is_cvat(file: Path) -> bool:
    """Whether a file is of CVAT."""
    return _tag(file) == "annotations"


def read(source: Source) -> CocoFile:
    """One XML file, of VOC or CVAT."""
    root = root_of(source.file)
    if root.tag == "annotation":
        return read_voc(source)
    if root.tag != "annotations" or root.find("image") is None:
        found = "a CVAT file of a video" if root.find("track") is not None else f"<{root.tag}>"
        raise DatasetError(
            f"{source.file} is {found}, not <annotation> of Pascal VOC or <annotations> with "
            "<image> of CVAT. Export it as 'CVAT for images 1.1' or COCO."
        )
    names = (name.text for name in root.iterfind("meta//labels/label/name"))
    listed = list(dict.fromkeys(filter(None, names)))
    left_out = Counter({"tracks of a video": len(root.findall("track"))})
    pictures = []
    for number, image in enumerate(root.iterfind("image")):
        with reading(f"{source.file}: image {image.get('name', number)!r}"):
            size = int(image.attrib["width"]), int(image.attrib["height"])
            found = [_cvat_shape(shape, size, left_out) for shape in image]
            pictures.append(Picture(image.attrib["name"], size, [o for o in found if o]))
    return make_coco(source, CVAT, pictures, left_out, listed)


def _cvat_shape(
    shape: ElementTree.Element, size: tuple[int, int], left_out: Counter[str]
) -> dict[str, Any]:
    """A shape as an object; {} if it is counted as left out."""
    values = shape.attrib
    turned = float(values.get("rotation", 0))

    def numbers(*names: str) -> list[float]:
        return [float(values[name]) for name in names]

    if shape.tag == "box" and not turned:
        made: dict[str, Any] = {"bbox": box(*numbers("xtl", "ytl", "xbr", "ybr"))}
    elif shape.tag == "polygon":
        made = polygon(map(float, values["points"].replace(";", ",").split(",")))
    elif shape.tag == "ellipse":
        made = ellipse(*numbers("cx", "cy", "rx", "ry"), turned)
    elif shape.tag == "mask":
        # Lengths of runs, row by row in the window, of which the first is of zeros.
        runs = list(map(int, values["rle"].split(",")))
        left, top, width, height = (
            int(values[name]) for name in ("left", "top", "width", "height")
        )
        pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        made = mask(pixels, left, top, size)
    else:
        left_out["rotated boxes" if turned else f"<{shape.tag}>"] += 1
        return {}
    group = values.get("group_id", "0")
    return {"class": values["label"], "group": None if group == "0" else group, **made}


def read_voc(source: Source) -> CocoFile:
    """The XML files of a folder, those that a list in ImageSets names, or one.

    Boxes are [xmin, ymin, xmax - xmin, ymax - ymin], as most converters have them, although VOC's
    pixels count from 1 and include xmax. Objects that are "difficult" are used as all others.
    """
    left_out: Counter[str] = Counter()
    pictures, listed = [], []
    for file in _voc_files(source):
        root = root_of(file)
        with reading(file):
            if root.tag != "annotation":
                left_out["XML files of another kind"] += 1
                continue
            size = tuple(int(float(root.findtext(f"size/{s}") or 0)) for s in ("width", "height"))
            found = [_voc_object(entry, left_out) for entry in root.iterfind("object")]
        listed.append(((root.findtext("filename") or file.stem).strip(), file.stem))
        pictures.append(Picture("", size if all(size) else None, [o for o in found if o]))
    beside = left_out if source.file.is_dir() else None
    for picture, name in zip(pictures, names_on_disk(source, listed, beside), strict=True):
        picture.name = name
    return make_coco(source, VOC, pictures, left_out)


def _voc_files(source: Source) -> Sequence[Path]:
    if source.file.suffix.lower() == ".xml":
        return [source.file]
    if source.file.is_dir():
        return sorted(source.file.glob("*.xml"))
    folder = source.file.parents[2] / "Annotations"
    lines = [line.split() for line in read_text(source.file).splitlines()]
    # In the list of one class, -1 says that it is not in the image.
    return [folder / f"{words[0]}.xml" for words in lines if words and words[-1] != "-1"]


def _voc_object(entry: ElementTree.Element, left_out: Counter[str]) -> dict[str, Any]:
    corners = entry.find("bndbox")
    if corners is None:
        left_out["objects without <bndbox>"] += 1
        return {}
    sides = [float(corners.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax")]
    made: dict[str, Any] = {"class": (entry.findtext("name") or "").strip(), "bbox": box(*sides)}
    if (ring := entry.find("polygon")) is not None:  # Roboflow's: x1, y1, x2, ...
        points = {e.tag: float(e.text or "") for e in ring}
        count = range(1, len(points) // 2 + 1)
        made["segmentation"] = [[points[f"{axis}{i}"] for i in count for axis in "xy"]]
    return made


def listed_splits(folder: Path) -> dict[str, list[str]]:
    """The lists of VOC in ``ImageSets/Main`` below a folder, by split."""
    lists = sorted(folder.glob("**/ImageSets/Main/*.txt"))
    found: dict[str, list[str]] = {}
    for file in lists:
        is_split = file.stem in ("train", "val", "test")
        if is_split and any(xml.is_file() for xml in _voc_files(Source(file))):
            found.setdefault(file.stem, []).append(str(Source(file)))
    return found if "train" in found else {}
