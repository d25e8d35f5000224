"""What the readers of other formats share: images and their objects become a CocoFile."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import log_first_n
from pycocotools import mask as mask_util

from gnws_d2.data import image_size
from gnws_d2.errors import DatasetError, shorten

from ..coco_file import CocoFile
from ..source import Source

IMAGES = frozenset(
    (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
ONLY_CLASS = "object"  # where a format has no classes


@dataclass
class Picture:
    """An image as an annotation file describes it.

    Attributes:
        name: its path, as COCO's file_name.
        size: width and height in pixels; None: those of the image file.
        objects: "class", and "bbox", "segmentation", "keypoints" and "iscrowd" as in COCO. A
            "group" that is not None joins polygons of one class to one object. A text says what an
            object is that cannot be carried over; "" is nothing.
        stem: the name without suffix of the only image that is meant where none has the name, which
            is more often right where images were renamed or converted.
    """

    name: str
    size: tuple[int, int] | None = None
    objects: list[dict[str, Any] | str] = field(default_factory=list)
    stem: str | None = None


@contextmanager
def reading(place: object) -> Iterator[None]:
    """Errors while a part of a file is converted name that ``place``."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # as damage makes nearly anything of what is converted
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error) or repr(error)
        raise DatasetError(
            f"{place} cannot be used: {shorten(said, quote=False)}. Correct it, or export it again."
        ) from error


def read_text(file: Path) -> str:
    """The text of a file, in UTF-8 with or without a mark."""
    with reading(file):
        return file.read_text(encoding="utf-8-sig")


def visible(folder: Path, *suffixes: str, pattern: str = "*") -> list[Path]:
    """The files in a folder that end in a suffix, in letters of any case, sorted and without hidden
    ones, such as macOS's ``._a.jpg``; with the pattern ``**/*`` also deeper."""
    found = (path for path in folder.glob(pattern) if path.suffix.lower() in suffixes)
    return sorted(path for path in found if "/." not in f"/{path.relative_to(folder).as_posix()}")


def images_below(folder: Path, pattern: str = "*") -> list[str]:
    """The images in a folder, relative to it and sorted; with the pattern ``**/*`` also deeper."""
    found = visible(folder, *IMAGES, pattern=pattern)
    return [path.relative_to(folder).as_posix() for path in found]


def numbers(values: Mapping[str, Any], names: str) -> list[float]:
    """The members of ``values`` of these names, which are separated by spaces."""
    return [float(values[name]) for name in names.split()]


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    """Two corners as COCO's [x, y, width, height]."""
    return [left, top, right - left, bottom - top]


def around(polygons: Iterable[Sequence[float]]) -> list[float]:
    """The box around polygons [x, y, x, y, ...]."""
    xs, ys = ([v for polygon in polygons for v in polygon[axis::2]] for axis in (0, 1))
    return box(min(xs), min(ys), max(xs), max(ys))


def polygon(points: Iterable[float]) -> dict[str, Any]:
    """The bbox and segmentation of one polygon [x, y, x, y, ...]."""
    ring = [float(value) for value in points]
    return {"bbox": around([ring]), "segmentation": [ring]}


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> dict[str, Any]:
    """An ellipse around x, y, turned clockwise, as a polygon of 64 points: 0.2% less area."""
    turn, angles = np.deg2rad(degrees), np.arange(64) * (np.pi / 32)
    a, b = rx * np.cos(angles), ry * np.sin(angles)
    xs, ys = x + a * np.cos(turn) - b * np.sin(turn), y + a * np.sin(turn) + b * np.cos(turn)
    return polygon(np.stack([xs, ys], 1).ravel().tolist())


def mask(pixels: np.ndarray, left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """The bbox and segmentation of a mask (H, W), whose first pixel is at ``left``, ``top`` of an
    image of ``size``, width and height. What is outside is cut off."""
    width, height = size
    whole = np.zeros((height, width), np.uint8, order="F")
    x, y = max(0, left), max(0, top)
    part = pixels[y - top : height - top, x - left : width - left]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part != 0
    encoded = mask_util.encode(whole)
    rle = {"size": [height, width], "counts": encoded["counts"].decode()}
    return {"bbox": mask_util.toBbox(encoded).tolist(), "segmentation": rle}


def make_coco(
    source: Source,
    kind: str,
    pictures: Sequence[Picture],
    left_out: Mapping[str, int] | None = None,
    classes: Sequence[str] = (),
    *,
    first: int = 1,
    fractions: bool = False,
    keypoints: Sequence[str] = (),
    places: Sequence[Path] | None = None,
    splits: Iterable[str] = (),
) -> CocoFile:
    """The content of a file or folder, images and classes in a fixed order.

    Args:
        kind: the name of the format.
        left_out: how many there are of what cannot be carried over, beside objects.
        classes: those that the format lists, in its order; others follow by name.
        first: the id of the first class.
        fractions: numbers are fractions of the image's width and height, not pixels.
        keypoints: the names of the points of each class.
        places: the folders that images with a stem may be in, if not those of ``source``.
        splits: what the file states as that of each image, which is not used.
    """
    if not pictures:
        raise DatasetError(f"{source} is {kind}, but has no annotated image. Name the right one.")
    lost = Counter(left_out or {})
    if any(picture.stem is not None for picture in pictures):
        lost.update(_find_names(source, places or source.folders(), pictures))
    lost.update(o for picture in pictures for o in picture.objects if isinstance(o, str) and o)
    true = _sizes(source, [picture.name for picture in pictures if picture.size is None])
    images, objects = [], []
    for number, picture in enumerate(sorted(pictures, key=lambda picture: picture.name), 1):
        width, height = size = picture.size or true[picture.name]
        about = {"file_name": picture.name, "width": width, "height": height}
        images.append({"id": number, **about})
        for entry in _joined(o for o in picture.objects if isinstance(o, dict)):
            pixels = _in_pixels(entry, size) if fractions else {}
            objects.append({"image_id": number, **entry, **pixels})
    used = {name for entry in objects if isinstance(name := entry["class"], str) and name.strip()}
    names = [*classes, *sorted(used - set(classes))]
    ids = {name: number for number, name in reversed(list(enumerate(names, first)))}
    for number, entry in enumerate(objects, 1):
        name = entry.pop("class")  # or already an id, or what the check will refuse
        entry.update({"id": number, "category_id": ids.get(name, name)})
        entry.setdefault("iscrowd", 0)
    points = {"keypoints": list(keypoints)} if keypoints else {}
    categories = [{"id": i, "name": name, **points} for i, name in enumerate(names, first)]
    empty = len(images) - len({entry["image_id"] for entry in objects})
    log(f"{source} is {kind}: {len(images)} images, {empty} of them background.", logging.INFO)
    for what, count in (+lost).items():
        log(f"{source}: {count} {what} are left out.")
    if len(stated := sorted({*splits} - {""})) > 1:
        said = f"its splits, {shorten(', '.join(stated), quote=False)}, are not used"
        log(f"{source}: {said}. Write a file for each: --train, --val, --test.")
    return CocoFile(str(source.file), images, objects, categories, kind)


def log(message: str, level: int = logging.WARNING) -> None:
    """Log a message once."""
    log_first_n(level, message, key="message")


def _find_names(
    source: Source, places: Sequence[Path], pictures: Iterable[Picture]
) -> dict[str, int]:
    """Change each name that is on no disk to that of the only image with the stem, and count the
    images beside them that a folder of annotations lacks."""
    folders = list(map(images_below, places))
    with_stem: defaultdict[str | None, set[str]] = defaultdict(set)
    for name in chain.from_iterable(folders):
        with_stem[os.path.splitext(name)[0]].add(name)
    every, used = {name.lower() for name in chain.from_iterable(folders)}, set()
    for picture in pictures:
        near = with_stem[picture.stem]
        if _base(picture.name) not in every and len(near) == 1:
            (picture.name,) = near
        used.add(_base(picture.name))
    others = [[name for name in there if name.lower() not in used] for there in folders]
    beside = (len(o) for o, there in zip(others, folders, strict=True) if len(o) < len(there))
    return {"images without an annotation file": sum(beside) * source.file.is_dir()}


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].lower()


def _sizes(source: Source, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Width and height of images as they are read, after EXIF orientation. An image that cannot be
    read gets 1 x 1: the check of all images says what is wrong with it."""
    files, found = source.images(names) if names else None, {}
    for name in names:
        try:
            found[name] = image_size(files.path(name))[:2]
        except DatasetError:
            found[name] = 1, 1
    return found


def _in_pixels(entry: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The members of an object that are fractions of the sides of its image."""
    rings = [[v * size[i % 2] for i, v in enumerate(r)] for r in entry.get("segmentation", ())]
    points = [v * (*size, 1)[i % 3] for i, v in enumerate(entry.get("keypoints", ()))]
    made = {"segmentation": rings, "keypoints": points}
    made["bbox"] = (
        around(rings) if rings else [v * size[i % 2] for i, v in enumerate(entry["bbox"])]
    )
    return {member: values for member, values in made.items() if values}


def _joined(objects: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Polygons of one class and group are one object."""
    made: list[dict[str, Any]] = []
    groups: dict[tuple[Any, Any], dict[str, Any]] = {}
    for entry in objects:
        group = entry.pop("group", None)
        whole = entry
        if group is not None and isinstance(entry.get("segmentation"), list):
            whole = groups.setdefault((entry["class"], str(group)), entry)
        if whole is entry:
            made.append(entry)
        else:
            whole["segmentation"] += entry["segmentation"]
            whole["bbox"] = around(whole["segmentation"])
    return made
