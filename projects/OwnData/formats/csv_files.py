"""CSV files with a box a row: Open Images, and those of TensorFlow, Roboflow and others; VIA's."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from gnws_d2.errors import DatasetError

from ..coco_file import CocoFile
from ..source import Source
from . import via
from .common import ONLY_CLASS, Picture, box, make_coco, read_text, reading

NAME = "CSV"
# What columns are called, in small letters without "_" and "#".
COLUMNS = {
    "image": ("filename", "image", "imageid", "imagename", "imagepath", "path", "file", "frame"),
    "class": ("class", "labelname", "label", "classname", "category", "name", "classid"),
    "left": ("xmin", "x1", "left"),
    "top": ("ymin", "y1", "top"),
    "right": ("xmax", "x2", "right"),
    "bottom": ("ymax", "y2", "bottom"),
    "x": ("x", "xmin", "x1", "left"),
    "y": ("y", "ymin", "y1", "top"),
    "width": ("width", "w"),
    "height": ("height", "h"),
    "box": ("bbox",),
}
CORNERS, SIDES = ("left", "top", "right", "bottom"), ("x", "y", "width", "height")


def columns_of(header: list[str]) -> dict[str, str]:
    """The column of each thing that is known; {} if the header is not that of boxes."""
    plain = {name.lower().strip().strip("#").replace("_", ""): name for name in header if name}
    found = {
        thing: next((plain[word] for word in words if word in plain), "")
        for thing, words in COLUMNS.items()
    }
    has_box = found["box"] or any(all(found[s] for s in sides) for sides in (CORNERS, SIDES))
    return found if found["image"] and has_box else {}


def delimiter_of(lines: Iterable[str]) -> str:
    """The delimiter with which the header of a file is known; "" if there is none."""
    first = next(iter(lines), "")
    for delimiter in ",;\t":
        header = next(csv.reader([first], delimiter=delimiter), [])
        if "region_shape_attributes" in header or columns_of(header):
            return delimiter
    return ""


def is_csv(file: Path) -> bool:
    """Whether the header of a file is known."""
    with reading(file), file.open(encoding="utf-8-sig", newline="") as opened:
        return bool(delimiter_of(opened))


def read(source: Source) -> CocoFile:
    """The rows of a file. One without box is an image without objects. Boxes are corners in pixels,
    of Open Images in fractions of the image's sides, or ``x, y, width, height``."""
    text = io.StringIO(read_text(source.file), newline="")
    delimiter = delimiter_of(text) or ","
    text.seek(0)
    reader = csv.DictReader(text, strict=True, delimiter=delimiter)
    with reading(source.file):
        header = [name.strip().lstrip("#") for name in reader.fieldnames or ()]
        reader.fieldnames = header
        rows = [{key or "": value or "" for key, value in row.items()} for row in reader]
    if "region_shape_attributes" in header:
        return via.read_rows(source, rows)
    if not (columns := columns_of(header)):
        raise DatasetError(
            f"{source.file}: its columns are {', '.join(header) or 'none'}. Needed are filename, "
            "class, xmin, ymin, xmax and ymax, or those of Open Images or VIA."
        )
    is_open_images = {"ImageID", "XMin", "LabelName"} <= set(header)
    labels = _class_names(source.file) if is_open_images else {}
    pictures: dict[str, Picture] = {}
    for number, row in enumerate(rows, 2):
        name = row[columns["image"]]
        picture = pictures.setdefault(name, Picture(name, stem=Path(name).name))
        with reading(f"{source.file}: row {number}"):
            found = _box(row, columns)
            label = row[columns["class"]].strip() if columns["class"] else ONLY_CLASS
        crowd = {"iscrowd": 1} if row.get("IsGroupOf") == "1" else {}
        made = {"class": labels.get(label, label), "bbox": found, **crowd}
        picture.objects.append(made if found else "")
    kind = "Open Images CSV" if is_open_images else NAME
    column = next((name for name in header if name.lower() in ("split", "set", "subset")), "")
    return make_coco(
        *(source, kind, list(pictures.values())),
        classes=list(labels.values()),
        fractions=is_open_images,
        splits={row.get(column, "") for row in rows},
    )


def _box(row: Mapping[str, str], columns: Mapping[str, str]) -> list[float]:
    """The box of a row as in COCO; [] if it has none."""
    if columns["box"]:
        words = row[columns["box"]].strip(" []()").replace(",", " ").split()
        return list(map(float, words))
    sides = CORNERS if all(columns[side] for side in CORNERS) else SIDES
    texts = [row[columns[side]].strip() for side in sides]
    values = [float(text) for text in texts] if any(texts) else []
    return box(*values) if values and sides == CORNERS else values


def _class_names(file: Path) -> dict[str, str]:
    """The names of Open Images' labels, in the order of their list."""
    for folder in (file.parent, file.parent / "metadata", file.parent.parent / "metadata"):
        for names in sorted(folder.glob("*class*.csv")):
            rows = csv.reader(read_text(names).splitlines())
            return {row[0]: row[1] for row in rows if len(row) > 1 and row[0].startswith("/")}
    return {}
