"""Pascal VOC (an XML file an image) and CVAT's "for images 1.1" (an XML file for all)."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from gnws_d2.errors import DatasetError

from ..coco_file import CocoFile
from ..source import SPLIT_WORDS, SPLITS, Source
from .common import (
    Picture,
    box,
    ellipse,
    log,
    make_coco,
    mask,
    numbers,
    polygon,
    read_text,
    reading,
    visible,
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


def kind_of(file: Path) -> str:
    """The format of a file by its root element, without reading on; "" if it is another."""
    try:
        tag = next(element.tag for _, element in ElementTree.iterparse(file, ["start"]))
    except (ElementTree.ParseError, OSError, StopIteration, LookupError, ValueError):
        return ""
    return {"annotation": VOC, "annotations": CVAT}.get(tag, "")


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
    left_out = {"tracks of a video": len(root.findall("track"))}
    pictures = []
    for number, image in enumerate(root.iterfind("image")):
        with reading(f"{source.file}: image {image.get('name', number)!r}"):
            size = int(image.attrib["width"]), int(image.attrib["height"])
            found = [_cvat_shape(shape, size) for shape in image]
            pictures.append(Picture(image.attrib["name"], size, found))
    splits = [image.get("subset", "") for image in root.iterfind("image")]
    return make_coco(source, CVAT, pictures, left_out, listed, splits=splits)


def _cvat_shape(shape: ElementTree.Element, size: tuple[int, int]) -> dict[str, Any] | str:
    """A shape as an object of a Picture."""
    values = shape.attrib
    turned = float(values.get("rotation", 0))
    if shape.tag == "box" and not turned:
        made: dict[str, Any] = {"bbox": box(*numbers(values, "xtl ytl xbr ybr"))}
    elif shape.tag == "polygon":
        made = polygon(map(float, values["points"].replace(";", ",").split(",")))
    elif shape.tag == "ellipse":
        made = ellipse(*numbers(values, "cx cy rx ry"), turned)
    elif shape.tag == "mask":
        # Lengths of runs, row by row in the window, of which the first is of zeros.
        runs = list(map(int, values["rle"].split(",")))
        left, top, width, height = map(int, numbers(values, "left top width height"))
        pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        made = mask(pixels, left, top, size)
    else:
        return "rotated boxes" if turned else f"<{shape.tag}>"
    group = values.get("group_id", "0")
    return {"class": values["label"], "group": None if group == "0" else group, **made}


def read_voc(source: Source) -> CocoFile:
    """The XML files of a folder, those that a list in ImageSets names, or one.

    Boxes are [xmin, ymin, xmax - xmin, ymax - ymin], as most converters have them, although VOC's
    pixels count from 1 and include xmax. Objects that are "difficult" are used as all others.
    """
    left_out: Counter[str] = Counter()
    pictures = []
    for file in _voc_files(source):
        if source.file.suffix.lower() == ".txt" and not file.is_file():
            left_out["listed images without an XML file"] += 1
            continue
        root = root_of(file)
        with reading(file):
            if root.tag != "annotation":
                left_out["XML files of another kind"] += 1
                continue
            size = tuple(int(float(root.findtext(f"size/{s}") or 0)) for s in ("width", "height"))
            found = [_voc_object(entry) for entry in root.iterfind("object")]
        name = (root.findtext("filename") or file.stem).strip()
        pictures.append(Picture(name, size if all(size) else None, found, file.stem))
    return make_coco(source, VOC, pictures, left_out)


def _voc_files(source: Source) -> Sequence[Path]:
    if source.file.suffix.lower() == ".xml":
        return [source.file]
    if source.file.is_dir():
        return visible(source.file, ".xml")
    folder = source.file.parents[2] / "Annotations"
    there = {file.stem: file for file in visible(folder, ".xml")}
    # In the list of one class, -1 says that it is not in the image.
    names = [line[0] for line in _lines(source.file) if line[-1] != "-1"]
    stems = [re.sub(r"\.(jpe?g|png|bmp|tiff?|webp|xml)$", "", name, flags=re.I) for name in names]
    return [there.get(stem, folder / f"{stem}.xml") for stem in stems]


def _lines(file: Path) -> list[list[str]]:
    """The words of the lines of a file that are not blank."""
    return [words for line in read_text(file).splitlines() if (words := line.split())]


def _voc_object(entry: ElementTree.Element) -> dict[str, Any] | str:
    corners = entry.find("bndbox")
    if corners is None:
        return "objects without <bndbox>"
    sides = [float(corners.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax")]
    made: dict[str, Any] = {"class": (entry.findtext("name") or "").strip(), "bbox": box(*sides)}
    if (ring := entry.find("polygon")) is not None:  # Roboflow's: x1, y1, x2, ...
        points = {e.tag: float(e.text or "") for e in ring}
        count = range(1, len(points) // 2 + 1)
        made["segmentation"] = [[points[f"{axis}{i}"] for i in count for axis in "xy"]]
    return made


def listed_splits(folder: Path) -> dict[str, list[str]]:
    """The lists of VOC in ``ImageSets/Main`` below a folder, by split. Without ``train.txt``,
    ``trainval.txt`` or the only list of another name, such as CVAT's ``default.txt``, is to train.
    """
    found: dict[str, list[str]] = {}
    mains = sorted(folder.glob("**/ImageSets/Main"))
    for main in mains:
        lists = {}
        for file in visible(main, ".txt"):
            name = SPLIT_WORDS.get(file.stem.lower(), file.stem.lower())
            of_class = name not in SPLITS and any(len(words) > 1 for words in _lines(file))
            if not of_class and any(xml.is_file() for xml in _voc_files(Source(file))):
                lists[name] = str(Source(file))
        others = [name for name in lists if name not in SPLITS]
        if "train" not in lists and (len(others) == 1 or "trainval" in lists):
            lists["train"] = lists["trainval" if "trainval" in lists else others[0]]
            lists.pop("val", None)  # of which images are in trainval
        for split in filter(lists.__contains__, SPLITS):
            found.setdefault(split, []).append(lists[split])
    if mains and "train" not in found:
        message = f"{mains[0]}: none of its lists can be used to train, such as train.txt."
        log(f"{message} All XML files are used.")
    return found if "train" in found else {}
