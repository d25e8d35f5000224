"""What in a COCO annotation file would train or evaluate wrong, by image and annotation id.

Everything that pycocotools and Detectron2 read is checked before they see it: they accept most
damage without a word, and some of it crashes them.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import rle
from .coco_file import CocoFile, is_id
from .images import ImageError, image_size

TOLERANCE = 1.0  # pixels that a box may reach out of its image
NORMALIZED_SIDE = 1.0  # a box smaller than this, in the first pixel, is a fraction of the image
SAME_AREA = 1e-3  # relative
LEAST_OVERLAP = 0.1  # intersection over union of a box and the box around its mask
MOST_SAID = 300  # characters about a problem
SAME_BOX = 0.9  # intersection over union

_REAL = {int, float}  # what JSON's numbers are; a bool is none
Box = tuple[float, float, float, float]  # x, y, width, height


@dataclass(frozen=True)
class Problem:
    """One image or annotation that cannot be used.

    Attributes:
        reason: a sentence about it, without the file.
        image: its id, or the annotation's image_id.
        annotation: its id; None where the image is the problem.
    """

    reason: str
    image: Any
    annotation: Any = None


@dataclass
class Verdict:
    """What :func:`check_coco` found.

    Attributes:
        problems: in the order of the file, images first.
        bad_images, bad_annotations: their indices in the file. The annotations of a bad image are
            bad too, but not a problem of their own.
    """

    problems: list[Problem] = field(default_factory=list)
    bad_images: set[int] = field(default_factory=set)
    bad_annotations: set[int] = field(default_factory=set)


def check_coco(
    coco: CocoFile,
    image_folder: Path | None = None,
    *,
    image_problem: Callable[[Path, dict[str, Any]], str] | None = None,
    needs_masks: bool = False,
    empty_boxes_too: bool = False,
) -> Verdict:
    """Check every image and annotation of a file.

    Args:
        image_folder: of the images; None: they are not looked at.
        image_problem: says what is wrong with an image file, or ""; by default
            :func:`header_problem`.
        needs_masks: an annotation without a segmentation is a problem, unless it is a crowd.
        empty_boxes_too: boxes without width or height are no problem.
    """
    verdict = Verdict()

    def add(index: int, reason: str, image: Any, *annotation: Any) -> None:
        (verdict.bad_annotations if annotation else verdict.bad_images).add(index)
        # In one line, and printable, whatever a file's name is.
        line = " ".join(reason.split()).encode(errors="backslashreplace").decode()
        line = line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}..."
        verdict.problems.append(Problem(line, image, *annotation))

    look = image_problem or header_problem
    for index, (image, reason) in enumerate(_image_problems(coco.images)):
        if not reason and image_folder is not None:
            reason = look(image_folder / image["file_name"], image)
        if reason:
            named = f"image {image.get('file_name', index)!r:.100} (id {image.get('id')!r})"
            add(index, f"{named}: {reason}", image.get("id"))
    good = {
        image["id"]: image
        for index, image in enumerate(coco.images)
        if index not in verdict.bad_images
    }
    bad = {coco.images[i]["id"] for i in verdict.bad_images if is_id(coco.images[i].get("id"))}
    check = _AnnotationCheck(coco, needs_masks, empty_boxes_too)
    for index, annotation in enumerate(coco.annotations or ()):
        image_id = annotation.get("image_id")
        if is_id(image_id) and image_id in bad:
            verdict.bad_annotations.add(index)
            continue
        own = good.get(image_id) if is_id(image_id) else None
        reason = check(annotation, own)
        if reason:
            add(index, _named(annotation, own) + reason, image_id, annotation.get("id"))
    # Of a file with another form of boxes, some are possible in this form too.
    if reason := check.other_form():
        for index, annotation in enumerate(coco.annotations or ()):
            if index not in verdict.bad_annotations:
                image_id = annotation["image_id"]
                add(index, _named(annotation, good[image_id]) + reason, image_id, annotation["id"])
    return verdict


def _named(annotation: dict[str, Any], image: dict[str, Any] | None) -> str:
    of_image = f" of {image['file_name']!r:.100}" if image else ""
    return f"annotation {annotation.get('id')!r:.60}{of_image}: "


def header_problem(file: Path, image: dict[str, Any]) -> str:
    """What the header of an image file says against it; "" if nothing."""
    try:
        width, height, orientation = image_size(file)
    except ImageError as error:
        # Without the fix, which is to skip it here.
        return f"{file}{str(error).removeprefix(str(file)).partition('. ')[0].rstrip('.')}"
    stated = image["width"], image["height"]
    if stated == (width, height):
        return ""
    found = f"it is {width} x {height} pixels, but the annotations say {stated[0]} x {stated[1]}"
    if orientation in (5, 6, 7, 8) and stated == (height, width):
        return f"{found}: they ignore its EXIF orientation, {orientation}"
    return found


def _image_problems(images: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    ids = Counter(image.get("id") for image in images if is_id(image.get("id")))
    files = Counter(image.get("file_name") for image in images if _is_name(image.get("file_name")))
    kinds = Counter(type(image.get("id")) for image in images)
    usual = kinds.most_common(1)[0][0] if kinds else int
    most = Image.MAX_IMAGE_PIXELS or math.inf
    for image in images:
        number, name = image.get("id"), image.get("file_name")
        sides: list[Any] = [image.get("width"), image.get("height")]
        reason = ""
        if not is_id(number) or type(number) is not usual:
            reason = f"its id is {number!r:.60}, not a whole number of 64 bits"
        elif ids[number] > 1:
            reason = f"{ids[number]} images have this id"
        elif not _is_name(name):
            reason = f"its file_name is {name!r:.60}"
        elif files[name] > 1:
            reason = f"the file is listed {files[name]} times"
        elif not all(_is_number(s) and s >= 1 and s == int(s) for s in sides):
            reason = f"its size is {sides[0]!r:.30} x {sides[1]!r:.30}"
        elif sides[0] * sides[1] > most:
            reason = f"its size is {sides[0]} x {sides[1]}, more than {most:.0f} pixels"
        yield image, reason


class _AnnotationCheck:
    """``check(annotation, image)`` says what is wrong with an annotation; "" if nothing."""

    def __init__(self, coco: CocoFile, needs_masks: bool, empty_boxes_too: bool) -> None:
        annotations = coco.annotations or []
        self._ids = Counter(a.get("id") for a in annotations if is_id(a.get("id")))
        kinds = Counter(type(a.get("id")) for a in annotations)
        self._kind = kinds.most_common(1)[0][0] if kinds else int
        self._categories = coco.class_names
        self._keypoints = {
            c["id"]: len(c["keypoints"])
            for c in coco.categories
            if isinstance(c.get("keypoints"), list)
        }
        objects = [a for a in annotations if not a.get("iscrowd")]
        masks = sum(bool(a.get("segmentation")) for a in objects)
        self._without_mask = needs_masks and (
            f"it has no segmentation, and {masks} of {len(objects)} objects have. MODEL.MASK_ON "
            "False trains on all boxes"
        )
        self._empty_boxes_too = empty_boxes_too
        self._boxes: Counter[str] = Counter()  # by what they could be, and what they were taken for

    def other_form(self) -> str:
        """The reason why all boxes are bad: some are of another form, and all could be; or ""."""
        count = self._boxes["all"]
        if self._boxes["taken for corners"] and self._boxes["corners"] == count > 1:
            return "its bbox looks like two corners, as all of the file do"
        if self._boxes["taken for normalized"] and self._boxes["normalized"] == count > 1:
            return "its bbox looks normalized, as all of the file do"
        return ""

    def __call__(self, annotation: dict[str, Any], image: dict[str, Any] | None) -> str:
        number, category = annotation.get("id"), annotation.get("category_id")
        if not is_id(number) or type(number) is not self._kind:
            return f"its id is {number!r:.60}, not a whole number of 64 bits"
        if self._ids[number] > 1:
            return f"{self._ids[number]} annotations have this id"
        if image is None:
            return f"its image_id, {annotation.get('image_id')!r:.60}, is no image's"
        if not is_id(category) or category not in self._categories:
            return f"its category_id, {category!r:.60}, is no category's"
        crowd = annotation.get("iscrowd", 0)
        if not isinstance(crowd, int) or crowd not in (0, 1):
            return f"its iscrowd is {crowd!r:.60}, not 0 or 1"
        if annotation.get("ignore"):
            return "it has the member ignore, which Detectron2 does not know. Use iscrowd"
        area = annotation.get("area", 0)
        if not _is_number(area) or area < 0:
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
        size = image["width"], image["height"]
        if not all(map(_is_number, box)):
            return f"its bbox is {_short(box)}, not finite"
        if width <= 0 or height <= 0:
            if self._empty_boxes_too and min(width, height) == 0:
                return ""
            return f"its bbox is {_short(box)}, without width or height"
        self._boxes["all"] += 1
        self._boxes["normalized"] += max(box) <= NORMALIZED_SIDE
        if width < NORMALIZED_SIDE and height < NORMALIZED_SIDE and 0 <= x < 1 and 0 <= y < 1:
            self._boxes["taken for normalized"] += 1
            return f"its bbox is {_short(box)}, which looks normalized: store pixels"
        inside = _is_inside((x, y, x + width, y + height), size)
        corners = width > x and height > y and _is_inside((x, y, width, height), size)
        self._boxes["corners"] += corners
        if not inside and corners:
            self._boxes["taken for corners"] += 1
            return (
                f"its bbox is {_short(box)}, which looks like two corners. Store [x, y, width, "
                "height]"
            )
        if not inside:
            return f"its bbox is {_short(box)}, outside its image of {size[0]} x {size[1]} pixels"
        area = annotation.get("area")
        if corners and area and not annotation.get("segmentation"):
            as_corners = (width - x) * (height - y)
            if _is_close(area, as_corners) and not _is_close(area, width * height):
                return (
                    f"its bbox is {_short(box)}, which looks like two corners: its area is "
                    f"{area:g}. Store [x, y, width, height]"
                )
        return ""

    def _segmentation(self, annotation: dict[str, Any], image: dict[str, Any]) -> str:
        mask = annotation.get("segmentation")
        if mask is None or mask == [] or mask == {}:
            return "" if annotation.get("iscrowd") else self._without_mask or ""
        if isinstance(mask, list):
            reason, around = _check_polygons(mask, image)
        elif isinstance(mask, dict):
            reason, around = _check_rle(mask, image)
        else:
            return f"its segmentation is {mask!r:.60}, neither polygons nor RLE"
        if reason or around is None:
            return reason
        box = tuple(annotation["bbox"])
        if _overlap(box, around) >= LEAST_OVERLAP or min(box[2:]) <= 0:
            if box[2] > box[0] and box[3] > box[1] and _overlap(box, around) < 0.5:
                as_corners = (box[0], box[1], box[2] - box[0], box[3] - box[1])
                if _overlap(as_corners, around) > SAME_BOX:
                    return (
                        f"its bbox is {_short(box)}, which looks like two corners: its mask is in "
                        f"{_short(around)}. Store [x, y, width, height]"
                    )
            return ""
        return f"its bbox is {_short(box)}, but its mask is in {_short(around)}"

    def _keypoint(self, annotation: dict[str, Any]) -> str:
        points = annotation.get("keypoints")
        if points is None or points == []:
            return ""
        if not isinstance(points, list) or len(points) % 3 or not all(map(_is_number, points)):
            return f"its keypoints are {points!r:.60}, not finite [x, y, visibility, ...]"
        wanted = self._keypoints.get(annotation["category_id"])
        if wanted is not None and len(points) != 3 * wanted:
            return f"it has {len(points) // 3} keypoints, its category has {wanted}"
        if any(visibility not in (0, 1, 2) for visibility in points[2::3]):
            return "a keypoint's visibility is not 0, 1 or 2"
        return ""


def _check_polygons(polygons: list[Any], image: dict[str, Any]) -> tuple[str, Box | None]:
    """The problem, and else the box around the polygons."""
    if _are_real(polygons):
        return "its segmentation is one flat list. Store a list of polygons", None
    for polygon in polygons:
        if not isinstance(polygon, list) or not _are_real(polygon):
            return f"its polygon is {polygon!r:.60}, not [x, y, x, y, ...]", None
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon has {len(polygon)} coordinates, not 3 or more pairs", None
    values = polygons[0] if len(polygons) == 1 else list(chain.from_iterable(polygons))
    try:
        points = np.asarray(values, np.float64).reshape(-1, 2)
    except OverflowError:  # a whole number that no float can hold
        return "a polygon has coordinates that are not finite", None
    left, top = points.min(axis=0).tolist()  # NaN if any is
    right, bottom = points.max(axis=0).tolist()
    if not all(map(math.isfinite, (left, top, right, bottom))):
        return "a polygon has coordinates that are not finite", None
    width, height = image["width"], image["height"]
    if min(left + width, top + height, 2 * width - right, 2 * height - bottom) < 0:
        return (
            f"a polygon reaches from {left:g}, {top:g} to {right:g}, {bottom:g}, far outside its "
            f"image of {width} x {height} pixels"
        ), None
    return "", (left, top, right - left, bottom - top)


def _check_rle(mask: dict[str, Any], image: dict[str, Any]) -> tuple[str, Box | None]:
    height, width = int(image["height"]), int(image["width"])
    size = mask.get("size")
    if not isinstance(size, list) or size != [height, width]:
        return f"its RLE has size {size!r:.40}, not [{height}, {width}] as its image", None
    try:
        around = rle.bounds(rle.runs(mask.get("counts"), height, width), height)
    except rle.RLEError as error:
        return f"its RLE is damaged: {error}", None
    if around is None:
        return "its mask is empty", None
    return "", around


def _is_inside(corners: tuple[float, ...], size: tuple[float, float]) -> bool:
    left, top, right, bottom = corners
    return (
        left >= -TOLERANCE
        and top >= -TOLERANCE
        and right <= size[0] + TOLERANCE
        and bottom <= size[1] + TOLERANCE
    )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union; polygons may be lines, so every side is at least a pixel."""
    sides = [max(1.0, side) for side in (*one[2:], *other[2:])]
    width = min(one[0] + sides[0], other[0] + sides[2]) - max(one[0], other[0])
    height = min(one[1] + sides[1], other[1] + sides[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    return common / (sides[0] * sides[1] + sides[2] * sides[3] - common)


def _are_real(values: list[Any]) -> bool:
    return set(map(type, values)) <= _REAL


def _is_number(value: Any) -> bool:
    # Neither NaN nor infinite, nor a whole number that no float can hold.
    return type(value) in _REAL and -sys.float_info.max <= value <= sys.float_info.max


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _is_close(one: float, other: float) -> bool:
    return abs(one - other) <= SAME_AREA * max(one, other)


def _short(box: Any) -> str:
    return "[" + ", ".join(f"{v:.6g}" if _is_number(v) else f"{v!r:.12}" for v in box) + "]"
