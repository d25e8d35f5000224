"""YOLO: a text file an image, with the lines ``class x y w h``, ``class x y x y x y ...`` (polygon)
or ``class x y w h`` and keypoints, in fractions of the image's width and height.

A source is a folder of images or labels, or a text file that lists images. Classes come from the
nearest YAML file with ``names``, ``classes.txt`` or ``obj.names``. Source: the documents of
Ultralytics and darknet.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import yaml

from gnws_d2.errors import DatasetError, shorten

from ..coco_file import CocoFile
from ..keypoints import flip_pairs
from ..source import SPLIT_WORDS, SPLITS, Source, split_of, swapped
from .common import (
    IMAGES,
    Picture,
    images_below,
    log,
    make_coco,
    polygon,
    read_text,
    reading,
    visible,
)

NAME = "YOLO"
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
# Folders of a data set: classes are looked for in these, and in the first folder above them.
INNER = re.compile(rf"images|labels|obj(_\w+_data)?|({'|'.join(SPLIT_WORDS)})[\d_-]*", re.I)
LEVELS = 4  # folders upwards in which a YAML file may name the source
# Names of classes and of keypoints, and how many keypoints there are, with how many values.
Info = tuple[list[str], list[str], tuple[int, int]]


def read(source: Source) -> CocoFile:
    """The images of a folder, or those that a file lists. One without a text file is background,
    as in Ultralytics. Class indices are the ids of the categories."""
    file, (names, points, shape) = source.file, _read_info(source.file)
    if file.is_dir():
        listed = next(filter(None, (images_below(f, "**/*") for f in source.folders())), [])
    else:
        listed = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    files = source.images(listed)
    labels = [label_file(files.path(name), file / name) for name in listed]
    if not any(labels):
        raise DatasetError(f"{source}: none of its {len(listed)} images has a YOLO label file.")
    pictures = [
        Picture(name, objects=_objects(label, shape) if label else [])
        for name, label in zip(listed, labels, strict=True)
    ]
    used = {label for label in labels if label}
    there = {f for folder in {label.parent for label in used} for f in visible(folder, ".txt")}
    unused = [f for f in there - used if f.name not in NAME_FILES and is_label(f)]
    left_out = {"label files without an image": len(unused) * file.is_dir()}
    if not names:
        log(f"{source}: no file names the classes, which are named 0, 1, ... now.")
        highest = max((o["class"] for picture in pictures for o in picture.objects), default=-1)
        names = list(map(str, range(highest + 1)))
    return make_coco(
        *(source, NAME, pictures, left_out, names), first=0, fractions=True, keypoints=points
    )


def label_file(image: Path, beside: Path | None = None) -> Path | None:
    """The label file of an image: in ``labels`` for ``images`` in its path, or beside it or
    ``beside``."""
    own = image.with_suffix(".txt")
    tried = [swapped(own, ("images",), name) for name in ("labels", "Labels")]
    tried += [own, own.parent.parent / "labels" / own.name]
    tried += [beside.with_suffix(".txt")] if beside else []
    return next((label for label in tried if label.is_file()), None)


def has_labels(folder: Path) -> bool:
    """Whether an image in a folder has a label file."""
    return any(label_file(folder / name) for name in images_below(folder, "**/*"))


def is_label(file: Path) -> bool:
    """Whether the first line of a text file is that of a YOLO file."""
    with reading(file), file.open(errors="replace") as opened:
        words = next(filter(str.strip, opened), "").split()
    return len(words) >= 5 and all(re.fullmatch(r"[-+.\deE]+|nan|inf", word) for word in words)


def _read_info(path: Path) -> Info:
    start, near = path if path.is_dir() else path.parent, True
    for place in [start, *start.parents][:LEVELS]:
        for file in _yamls(place):
            with nullcontext() if near else suppress(DatasetError):  # another project's
                if info := _of_yaml(file, path, near):
                    return info
        for file in (place / name for name in NAME_FILES if near):
            if file.is_file() and not is_label(file):
                log(f"{path}: {file} names the classes.", logging.INFO)
                return _listed_names(file), [], (0, 0)
        near = near and bool(INNER.fullmatch(place.name))
    return [], [], (0, 0)


def _of_yaml(file: Path, path: Path, near: bool) -> Info | None:
    """What a YAML file that names ``path``, or is ``near``, says of it; None if it says nothing."""
    content = _content(file)
    named = [_place(file, content, e) for split in SPLITS for e in _entries(content, split)]
    if not (near and content.keys() & {*SPLITS, "path", "nc"}) and path.resolve() not in named:
        return None
    if not content.get("names"):
        log(f"{file} has no names. Add the classes: names: [a, b].")
        return None
    log(f"{path}: {file} names the classes.", logging.INFO)
    with reading(file):
        return _info(content)


def _listed_names(file: Path) -> list[str]:
    """The lines of a file of names."""
    names = [name.strip() for name in read_text(file).rstrip().splitlines()]
    if "" in names:
        line = f"{file}: line {names.index('') + 1}"
        raise DatasetError(f"{line} is blank. Write a class, or remove it.")
    return names


def _yamls(folder: Path) -> list[Path]:
    """The YAML files of a folder, ``data.yaml`` first."""
    return sorted(visible(folder, ".yaml", ".yml"), key=lambda file: file.name != "data.yaml")


def _entries(content: Mapping[str, Any], split: str) -> list[str]:
    """What a YAML file names for a split."""
    entries = content.get(split) or []
    return list(map(str, entries if isinstance(entries, list) else [entries]))


def _content(file: Path, is_named: bool = False) -> dict[str, Any]:
    """:func:`read_yaml`, and {} of a damaged file that may be of another program."""
    try:
        return read_yaml(file)
    except DatasetError as error:
        if is_named or file.stem == "data":
            raise
        log(str(error))
        return {}


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, with the names as they are written, such as no and 1;
    {} if it holds something else."""
    try:
        content = yaml.safe_load(text := read_text(file))
        if isinstance(content, dict) and content.get("names"):
            content["names"] = yaml.load(text, yaml.BaseLoader)["names"]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said = shorten(str(error), quote=False)
        raise DatasetError(f"{file} is not valid YAML: {said}") from error
    return content if isinstance(content, dict) else {}


def _info(content: Mapping[str, Any]) -> Info:
    names = content["names"]
    if isinstance(names, dict):
        ordered = {int(index): name for index, name in names.items()}
        names = [ordered.get(index, index) for index in range(max(ordered) + 1)]
    count, values = content.get("kpt_shape") or (0, 0)
    points = content.get("kpt_names") or range(count)
    points = list(map(str, next(iter(points.values())) if isinstance(points, dict) else points))
    flip = content.get("flip_idx") or range(count)
    pairs = {frozenset((points[i], points[j])) for i, j in enumerate(flip) if i != j}
    if set(map(frozenset, flip_pairs(points))) != pairs:  # which decide what a flip exchanges
        sides = [(i > j) - (i < j) for i, j in enumerate(flip)]
        words = {-1: "left", 0: "point", 1: "right"}
        points = [f"{words[side]}_{min(i, flip[i])}" for i, side in enumerate(sides)]
    return list(map(str, names)), points, (count, values)


def _objects(file: Path, shape: tuple[int, int]) -> list[dict[str, Any] | str]:
    found, (count, values) = [], shape
    for number, line in enumerate(read_text(file).splitlines(), 1):
        with reading(f"{file}: line {number}"):
            if not (words := list(map(float, line.split()))):
                continue
            index, *numbers = words
            is_polygon = not count and len(words) >= 7 and len(words) % 2
            if not is_polygon and len(numbers) not in (4, 4 + count * values):
                raise ValueError(f"it has {len(words)} numbers, not those of a box or polygon")
            if index % 1 or not 0 <= index < 1 << 31:
                raise ValueError(f"its class is {index:g}, not an index")
        made = polygon(numbers) if is_polygon else _box(numbers, values)
        found.append({"class": int(index), **made})
    return found


def _box(numbers: Sequence[float], values: int) -> dict[str, Any]:
    x, y, w, h, *points = numbers
    triples: list[float] = []
    for i in range(0, len(points), values or 1):
        px, py = points[i : i + 2]
        # Without a third value, points at 0, 0 are not labelled, as in COCO.
        seen = points[i + 2] if values == 3 else 2 * (px > 0 or py > 0)
        triples += [px, py, int(seen) if seen in (0, 1, 2) else seen]
    made = {"keypoints": triples} if triples else {}
    return {"bbox": [x - w / 2, y - h / 2, w, h], **made}


def listed_splits(folder: Path, listing: Path | None = None) -> dict[str, list[str]]:
    """The sources of each split that a YAML file in ``folder``, or ``listing``, names, or lists of
    images such as train.txt.

    Raises:
        DatasetError: nothing of what is named for training exists.
    """
    found: dict[str, list[str]] = {}
    for file in [listing] if listing else _yamls(folder):
        content = _content(file, is_named=bool(listing))
        if not (content.get("train") and content.keys() & {"names", "nc"}):
            continue
        for split in SPLITS:
            for entry in _entries(content, split):
                if place := _place(file, content, entry):
                    found.setdefault(split, []).append(str(Source(place)))
                elif split == "train":
                    raise DatasetError(f"{file}: train names {entry}, which does not exist.")
                else:
                    log(f"{file}: {split} names {entry}, which does not exist.")
        return found
    for file in visible(folder, ".txt"):
        first = read_text(file).partition("\n")[0].strip()
        if (split := split_of(file.stem)) and Path(first).suffix.lower() in IMAGES:
            found.setdefault(split, []).append(str(Source(file)))
    return found if "train" in found else {}


def _place(file: Path, content: Mapping[str, Any], entry: str) -> Path | None:
    """What an entry of a YAML file names. The folder of another computer, and Roboflow's ``../``,
    are left out where they lead nowhere."""
    root, entry = file.parent, entry.replace("\\", "/")
    parts = [part for part in Path(entry).parts if part not in ("..", "/")]
    ends = range(len(parts) if re.match("/|[A-Za-z]:", entry) else 1)
    tried = [root / str(content.get("path") or "").replace("\\", "/") / entry, root / entry]
    tried += [root.joinpath(*parts[start:]) for start in ends]
    return next((place.resolve() for place in tried if place.exists()), None)
