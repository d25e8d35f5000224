"""Objects and detections drawn into their images with Detectron2's Visualizer."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.utils.colormap import colormap
from PIL import Image
from pycocotools import mask as mask_utils

from .choose import ImageResult
from .curves import plain
from .matching import Matches, ReportError

SIDE = 540  # pixels of the longer side of a drawn image; smaller ones are enlarged
RIGHT, WRONG, LEFT_OUT = "#2E9BFF", "#FF5A1F", "#B0B0B0"
Annotation = Mapping[str, Any]  # of an object or a detection, in COCO's form


def draw(
    rgb: np.ndarray,
    annotations: Sequence[Annotation],
    labels: Sequence[str],
    colours: Sequence[Any],
    *,
    side: int = SIDE,
) -> Image.Image:
    """Draw boxes, masks and labels, after scaling the image to ``side`` pixels.

    Args:
        rgb: (H, W, 3) uint8.
        annotations: with ``bbox``, XYWH in pixels of ``rgb``, and, if they have masks,
            ``segmentation`` as polygons, RLE of its size, or an (H, W) array; ``keypoints`` are
            drawn if all have them.
        labels, colours: one for each annotation; colours as matplotlib takes them.
    """
    try:
        # Not at the top: it imports OpenCV, which nothing else here needs.
        from detectron2.utils.visualizer import GenericMask, Visualizer
    except ImportError as error:
        raise ReportError(
            f"images cannot be drawn: {error}. Detectron2's Visualizer needs OpenCV: "
            "pip install opencv-python-headless"
        ) from error

    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    stretch = np.array([size[0] / width, size[1] / height])
    visualizer = Visualizer(np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)))
    for annotation, colour in zip(annotations, colours, strict=True):
        mask = annotation.get("segmentation")
        if isinstance(mask, list):
            for polygon in mask:
                visualizer.draw_polygon(np.reshape(polygon, (-1, 2)) * stretch, colour, alpha=0.3)
        elif mask is not None:
            whole = Image.fromarray(_decode(mask, height, width))
            binary = np.asarray(whole.resize(size, Image.Resampling.NEAREST))
            visualizer.draw_soft_mask(binary, colour, alpha=0.3)  # holes stay free
            for polygon in GenericMask(binary, *binary.shape).polygons:
                visualizer.draw_polygon(polygon.reshape(-1, 2), colour, alpha=0)
    if annotations:
        corners = np.array([a["bbox"] for a in annotations], dtype=float)
        corners[:, 2:] += corners[:, :2]
        corners = np.clip(corners, 0, [width, height, width, height])  # labels stay inside, too
        points: Any = [a.get("keypoints") for a in annotations]
        visualizer.overlay_instances(
            boxes=corners * np.tile(stretch, 2),
            labels=[plain(label) for label in labels],
            keypoints=np.reshape(points, (len(points), -1, 3)) * [*stretch, 1]
            if all(points)
            else None,
            assigned_colors=list(colours),
        )
    with warnings.catch_warnings():
        # The font may lack the letters of a class name.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        return Image.fromarray(visualizer.output.get_image())


def truth_and_prediction(
    rgb: np.ndarray,
    objects: Sequence[Annotation],
    detections: Sequence[Annotation],
    names: Mapping[int, str],
    matches: Matches,
    threshold: float,
) -> tuple[Image.Image, Image.Image]:
    """The objects of an image and what is detected in it, in colours that say what is right.

    Args:
        detections: those of the image; each has the ``id`` that ``matches`` knows it by.
        names: category id -> name.
        threshold: the lowest score that is drawn.
    """
    found = dict(zip(matches.object_id, matches.found_score >= threshold, strict=True))
    is_right = dict(zip(matches.detection_id, matches.is_right, strict=True))
    kept = [d for d in detections if d["score"] >= threshold]

    def colour(verdict: bool | None) -> str:
        return LEFT_OUT if verdict is None else RIGHT if verdict else WRONG

    def label(annotation: Annotation) -> str:
        crowd = " (crowd)" if annotation.get("iscrowd") else ""
        score = f" {annotation['score']:.2f}" if "score" in annotation else ""
        return f"{names[annotation['category_id']]}{score}{crowd}"

    return (
        draw(
            rgb, objects, [label(a) for a in objects], [colour(found.get(a["id"])) for a in objects]
        ),
        draw(rgb, kept, [label(a) for a in kept], [colour(is_right.get(a["id"])) for a in kept]),
    )


def without(annotations: Iterable[Annotation], members: Iterable[str]) -> list[Annotation]:
    """The annotations without ``members``, such as the masks that a detector does not predict."""
    return [{k: v for k, v in a.items() if k not in members} for a in annotations]


def beside(left: Image.Image, right: Image.Image, gap: int = 8) -> Image.Image:
    """Two images side by side."""
    joined = Image.new(
        "RGB", (left.width + gap + right.width, max(left.height, right.height)), "white"
    )
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width + gap, 0))
    return joined


def jpeg(image: Image.Image, most_bytes: int) -> bytes:
    """A JPEG of at most ``most_bytes``, of lower quality, and then smaller, where needed."""
    while True:
        for quality in (88, 75, 60):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= most_bytes or max(image.size) < 64:
                return buffer.getvalue()
        image = image.reduce(2)


def caption(result: ImageResult) -> str:
    """ "3 found, 1 missed, 2 wrong"."""
    return f"{result.found} found, {result.missed} missed, {result.wrong} wrong"


def class_colours(categories: Sequence[int]) -> list[np.ndarray]:
    """A colour for each index of a class, always the same."""
    colours = colormap(rgb=True, maximum=1)
    return [colours[k % len(colours)] for k in categories]


def _decode(mask: Any, height: int, width: int) -> np.ndarray:
    """RLE, or (H, W) that is returned as it is, as 0 and 1."""
    if isinstance(mask, np.ndarray):
        return mask.astype(np.uint8)
    if isinstance(mask["counts"], list):
        mask = mask_utils.frPyObjects(mask, height, width)
    return mask_utils.decode(mask)
