"""Find the images and annotations of a COCO file that would train or evaluate wrong.

pycocotools and Detectron2 accept most damage silently, and some of it crashes them. Everything that
they read is therefore checked first. What Detectron2 drops or clips is counted in a warning.
"""

import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import log_first_n
from PIL import Image

from gnws_d2.data import image_size
from gnws_d2.errors import DatasetError, shorten

from . import rle
from .coco_file import CocoFile, is_file_name
from .image_files import ImageFiles

TOLERANCE = 1.0  # pixels that a box may extend beyond its image
NORMALIZED_SIDE = 1.0  # a box smaller than this, in the first pixel, is a fraction of the image
SAME_AREA = 1e-3  # relative
# Intersection over union with the box around a mask: the least of a bbox, the least of one that
# cannot be two corners, and the least of two corners.
LEAST_OVERLAP, SURE_OVERLAP, CORNERS_OVERLAP = 0.1, 0.5, 0.9

_REAL = {int, float}  # the types of JSON's numbers; bool is not one
Box = tuple[float, float, float, float]  # x, y, width, height


@dataclass(frozen=True)
class Problem:
    """One image or annotation that cannot be used.

    Attributes:
        reason: a sentence about it, without the file.
        image, annotation: its ids; ``annotation`` is None where the image is the problem.
    """

    reason: str
    image: Any
    annotation: Any = None


def header_problem(file: Path, image: dict[str, Any]) -> str:
    """What is wrong with the header of an image file, compared with ``image``, its entry in the
    annotation file; "" if nothing is."""
    try:
        width, height, orientation = image_size(file)
    except DatasetError as error:
        return str(error)
    stated = image["width"], image["height"]
    if stated == (width, height):
        return ""
    found = f"it is {width} x {height} pixels, but the annotations say {stated[0]} x {stated[1]}"
    is_turned = orientation in (5, 6, 7, 8) and stated == (height, width)
    return found + (f": they ignore its EXIF orientation, {orientation}" if is_turned else "")


def warn_once(message: str) -> None:
    log_first_n(logging.WARNING, message, key="message")


def check_coco(
    coco: CocoFile,
    images: ImageFiles,
    *,
    needs_masks: bool = False,
    image_problem: Callable[[Path, dict[str, Any]], str] = header_problem,
    warn: Callable[[str], None] = warn_once,
) -> tuple[CocoFile, list[Problem]]:
    """Check every image and annotation of a file.

    Args:
        images: where they are.
        needs_masks: an annotation without a segmentation is a problem, unless it is a crowd.
        image_problem: says what is wrong with an image file, or "".
        warn: gets a sentence on each kind of finding that training drops or clips.

    Returns:
        the sound part of the file, and the problems, images first. The annotations of a bad image
        are left out too, but are no problems of their own.
    """
    problems: list[Problem] = []
    good: list[dict[str, Any]] = []
    by_id: dict[Any, dict[str, Any] | None] = {}  # None for a bad image
    files = Counter(os.path.normpath(images.path(name)) for name in coco.file_names)
    for image, reason in _with_id_problems(coco.images, "images"):
        number = image.get("id")
        reason = reason or _image_problem(image, images, files)
        reason = reason or image_problem(images.path(image["file_name"]), image)
        if _is_id(number):
            by_id[number] = None if reason else image
        if reason:
            name = image.get("file_name", len(good) + len(problems))
            line = f"image {name!r:.260} (id {number!r}): {reason}"
            problems.append(Problem(shorten(line, quote=False), number))
        else:
            good.append(image)
    check = _AnnotationCheck(coco, needs_masks)
    checked = []
    for annotation, reason in _with_id_problems(coco.annotations or [], "annotations"):
        number = annotation.get("image_id")
        of_image = by_id.get(number, {}) if _is_id(number) else {}
        if of_image is not None:
            checked.append((annotation, of_image, reason or check(annotation, of_image)))
    for finding, count in check.tolerated.items():
        warn(f"{coco.file} has {finding}, which training drops or clips: {count}.")
    # If the boxes of a file have another form, some of them are possible in this form too. They
    # come last, as others show the form more clearly.
    other_form = check.other_form()
    for annotation, image, reason in sorted(checked, key=lambda entry: not entry[-1]):
        if reason := reason or other_form:
            number = annotation.get("id")
            of = f" of {image['file_name']!r:.260}" if image else ""
            line = shorten(f"annotation {number!r:.60}{of}: {reason}", quote=False)
            problems.append(Problem(line, annotation.get("image_id"), number))
    sound = [annotation for annotation, _, reason in checked if not (reason or other_form)]
    kept = None if coco.annotations is None else sound
    return CocoFile(coco.file, good, kept, coco.categories), problems


def _with_id_problems(
    entries: list[dict[str, Any]], kind: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """Each entry, and what is wrong with its id, or ""."""
    ids = [entry.get("id") for entry in entries]
    counts, types = Counter(filter(_is_id, ids)), Counter(map(type, ids))
    usual = max(types, key=types.__getitem__, default=int)
    for entry, number in zip(entries, ids, strict=True):
        if not _is_id(number) or type(number) is not usual:
            yield entry, f"its id is {number!r:.60}, not a whole number of 64 bits"
        else:
            count = counts[number]
            yield entry, f"{count} {kind} have this id" if count > 1 else ""


def _image_problem(image: dict[str, Any], images: ImageFiles, files: Mapping[str, int]) -> str:
    """What is wrong with an entry of the file; ``files`` counts how often each path is listed."""
    name, width, height = (image.get(member) for member in ("file_name", "width", "height"))
    most = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)  # where Pillow refuses it
    if not is_file_name(name):
        return f"its file_name is {name!r:.60}"
    if (count := files[os.path.normpath(images.path(name))]) > 1:
        return f"the file is listed {count} times: {images.path(name)}"
    if problem := images.problem(name):
        return problem
    if not all(_is_number(side) and side >= 1 and side == int(side) for side in (width, height)):
        return f"its size is {width!r:.30} x {height!r:.30}"
    if width * height > most:
        return f"its size is {width} x {height}, more than {most:.0f} pixels"
    return ""


class _AnnotationCheck:
    """``check(annotation, image)`` says what is wrong with an annotation, or ""."""

    def __init__(self, coco: CocoFile, needs_masks: bool) -> None:
        self._categories = {category["id"]: category for category in coco.categories}
        objects = [a for a in coco.annotations or () if not a.get("iscrowd")]
        masks = sum(bool(a.get("segmentation")) for a in objects)
        self._without_mask = needs_masks * (
            f"no segmentation, although {masks} of {len(objects)} objects have one; set "
            "MODEL.MASK_ON False to train on boxes only"
        )
        # How many boxes have each form, or could have it.
        self._boxes: Counter[str] = Counter()
        self.tolerated: Counter[str] = Counter()  # what Detectron2 drops or clips

    def other_form(self) -> str:
        """What is wrong with every box if one has another form that all could have, or ""."""
        count = self._boxes["all"]
        for form in ("like two corners", "normalized"):
            if self._boxes[form] and self._boxes[f"maybe {form}"] == count > 1:
                return f"its bbox looks {form}, and so does every other box in the file"
        return ""

    def __call__(self, annotation: dict[str, Any], image: dict[str, Any]) -> str:
        if not image:
            return f"its image_id, {annotation.get('image_id')!r:.60}, is not the id of an image"
        category = annotation.get("category_id")
        if not _is_id(category) or category not in self._categories:
            return f"its category_id, {category!r:.60}, is not the id of a category"
        crowd = annotation.get("iscrowd", 0)
        if not isinstance(crowd, int) or crowd not in (0, 1):
            return f"its iscrowd is {crowd!r:.60}, not 0 or 1"
        if annotation.get("ignore"):
            return "it has the member ignore, which Detectron2 does not know. Use iscrowd"
        area = annotation.get("area")
        if area is not None and (not _is_number(area) or area < 0):
            return f"its area is {area!r:.60}"
        return (
            self._box(annotation.get("bbox"), annotation, image)
            or self._segmentation(annotation, image)
            or self._keypoint(annotation)
        )

    def _box(self, box: Any, annotation: dict[str, Any], image: dict[str, Any]) -> str:
        if not isinstance(box, list) or len(box) != 4 or not _are_real(box):
            return f"its bbox is {box!r:.80}, not [x, y, width, height]"
        x, y, width, height = box
        if not all(map(_is_number, box)):
            return f"its bbox is {_short(box)}, not finite"
        if width < 0 or height < 0:
            return f"its bbox is {_short(box)}, of negative width or height"
        if not (width and height):
            self.tolerated["boxes without width or height"] += 1
            return ""
        self._boxes["all"] += 1
        self._boxes["maybe normalized"] += max(box) <= NORMALIZED_SIDE
        if width < NORMALIZED_SIDE and height < NORMALIZED_SIDE and 0 <= x < 1 and 0 <= y < 1:
            self._boxes["normalized"] += 1
            return f"its bbox is {_short(box)}, which looks normalized: store pixels"
        inside = _beyond(x, y, x + width, y + height, image) <= TOLERANCE
        corners = width > x and height > y and _beyond(x, y, width, height, image) <= TOLERANCE
        self._boxes["maybe like two corners"] += corners
        if not inside and corners:
            self._boxes["like two corners"] += 1
            return _corners(box)
        if not inside:
            if _is_far(x, y, x + width, y + height, image):
                size = f"{image['width']} x {image['height']}"
                return f"its bbox is {_short(box)}, outside its image of {size} pixels"
            self.tolerated["boxes that reach beyond their image"] += 1
        area = annotation.get("area")
        if corners and area and not annotation.get("segmentation"):
            sizes = (width - x) * (height - y), width * height
            if [math.isclose(area, s, rel_tol=SAME_AREA) for s in sizes] == [True, False]:
                return _corners(box, f": its area is {area:g}")
        return ""

    def _segmentation(self, annotation: dict[str, Any], image: dict[str, Any]) -> str:
        mask = annotation.get("segmentation")
        if mask is None or mask == [] or mask == {}:
            return "" if annotation.get("iscrowd") else self._without_mask
        if not isinstance(mask, (list, dict)):
            return f"its segmentation is {mask!r:.60}, neither polygons nor RLE"
        box_of = _box_of_polygons if isinstance(mask, list) else _box_of_rle
        try:
            around = box_of(mask, image)
        except DatasetError as error:
            return str(error)
        if around is None or len(usable_mask(mask)) < len(mask):
            self.tolerated["masks that are empty or have polygons of less than 3 points"] += 1
        x, y, width, height = box = annotation["bbox"]
        if around is None or not (width and height):
            return ""
        overlap = _overlap(box, around)
        if overlap < SURE_OVERLAP and width > x and height > y:
            as_corners = _overlap((x, y, width - x, height - y), around)
            if as_corners > CORNERS_OVERLAP:
                return _corners(box, f": its mask is in {_short(around)}")
        if overlap < LEAST_OVERLAP:
            return f"its bbox is {_short(box)}, but its mask is in {_short(around)}"
        return ""

    def _keypoint(self, annotation: dict[str, Any]) -> str:
        points = annotation.get("keypoints")
        if points is None or points == []:
            return ""
        if not isinstance(points, list) or len(points) % 3 or not all(map(_is_number, points)):
            return f"its keypoints are {points!r:.60}, not finite [x, y, visibility, ...]"
        names = self._categories[annotation["category_id"]].get("keypoints")
        if isinstance(names, list) and len(points) != 3 * len(names):
            return f"it has {len(points) // 3} keypoints, but its category has {len(names)}"
        if any(visibility not in (0, 1, 2) for visibility in points[2::3]):
            return "a keypoint's visibility is not 0, 1 or 2"
        return ""


def usable_mask(mask: Any) -> Any:
    """A segmentation without the polygons that Detectron2 does not load."""
    if isinstance(mask, list):
        return [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return mask


def _box_of_polygons(polygons: list[Any], image: dict[str, Any]) -> Box | None:
    """The box around the usable polygons. A DatasetError says what is wrong with them."""
    if _are_real(polygons):
        raise DatasetError("its segmentation is one flat list. Store a list of polygons")
    for polygon in polygons:
        if not isinstance(polygon, list) or not _are_real(polygon):
            raise DatasetError(f"its polygon is {polygon!r:.60}, not [x, y, x, y, ...]")
    if not (polygons := usable_mask(polygons)):
        return None
    try:
        points = np.fromiter(chain.from_iterable(polygons), np.float64).reshape(-1, 2)
    except OverflowError:  # a whole number that no float can hold
        points = np.full((1, 2), np.inf)
    left, top = points.min(axis=0).tolist()  # NaN if any is
    right, bottom = points.max(axis=0).tolist()
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise DatasetError("a polygon has coordinates that are not finite")
    if _is_far(left, top, right, bottom, image):
        raise DatasetError(
            f"a polygon reaches from {left:g}, {top:g} to {right:g}, {bottom:g}, far outside its "
            f"image of {image['width']} x {image['height']} pixels"
        )
    return left, top, right - left, bottom - top


def _box_of_rle(mask: dict[str, Any], image: dict[str, Any]) -> Box | None:
    """The box around a mask; None if it is empty. A DatasetError says what is wrong with it."""
    height, width = int(image["height"]), int(image["width"])
    size = mask.get("size")
    if not isinstance(size, list) or size != [height, width]:
        raise DatasetError(f"its RLE has size {size!r:.40}, not [{height}, {width}] as its image")
    try:
        return rle.bounds(rle.runs(mask.get("counts"), height, width), height)
    except DatasetError as error:
        raise DatasetError(f"its RLE is damaged: {error}") from error


def _beyond(left: float, top: float, right: float, bottom: float, image: dict) -> float:
    """How many pixels it reaches beyond its image."""
    return max(-left, -top, right - image["width"], bottom - image["height"])


def _is_far(left: float, top: float, right: float, bottom: float, image: dict) -> bool:
    """Whether it is beside its image, or reaches farther beyond it than the image is long."""
    beside = left > image["width"] or top > image["height"] or right < 0 or bottom < 0
    return beside or _beyond(left, top, right, bottom, image) > max(image["width"], image["height"])


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union; polygons may be lines, so every side is at least a pixel."""
    sides = [max(1.0, side) for side in (*one[2:], *other[2:])]
    width = min(one[0] + sides[0], other[0] + sides[2]) - max(one[0], other[0])
    height = min(one[1] + sides[1], other[1] + sides[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    return common / (sides[0] * sides[1] + sides[2] * sides[3] - common)


def _is_id(value: Any) -> bool:
    # NumPy holds 64 bits.
    return isinstance(value, str) or (type(value) is int and -(2**63) <= value < 2**63)


def _are_real(values: list[Any]) -> bool:
    return set(map(type, values)) <= _REAL


def _is_number(value: Any) -> bool:
    # Neither NaN nor infinite, nor a whole number that no float can hold.
    return type(value) in _REAL and -sys.float_info.max <= value <= sys.float_info.max


def _corners(box: Any, why: str = "") -> str:
    return (
        f"its bbox is {_short(box)}, which looks like two corners{why}. Store [x, y, width, height]"
    )


def _short(box: Any) -> str:
    return "[" + ", ".join(f"{v:.6g}" if _is_number(v) else f"{v!r:.12}" for v in box) + "]"
