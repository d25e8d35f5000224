"""Objects and detections drawn into their images with Detectron2's Visualizer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from PIL import Image, ImageOps

from gnws_d2.errors import GnwsError

from .curves import plain
from .matching import Matches

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
) -> np.ndarray:
    """Draw boxes, masks and labels, after scaling the image to ``side`` pixels.

    Args:
        rgb: (H, W, 3) uint8.
        annotations: with ``bbox``, XYWH in pixels of ``rgb``, and, if they have masks,
            ``segmentation`` as polygons or compressed RLE; ``keypoints`` are drawn if all have
            them.
        labels, colours: one for each annotation; colours as matplotlib takes them.

    Returns:
        (H', W', 3) uint8.
    """
    try:
        # Not at the top: it imports OpenCV, which nothing else here needs.
        from detectron2.utils.visualizer import GenericMask, Visualizer
    except ImportError as error:
        raise GnwsError(
            f"images cannot be drawn: {error}. Detectron2's Visualizer needs OpenCV: "
            "pip install opencv-python-headless"
        ) from error

    old = rgb.shape[:2]
    new = tuple(max(1, round(length * side / max(old))) for length in old)
    resize = ResizeTransform(*old, *new)
    # It changes its argument.
    placed = [
        transform_instance_annotations({**a, "bbox_mode": BoxMode.XYWH_ABS}, [resize], new)
        for a in annotations
    ]
    visualizer = Visualizer(resize.apply_image(rgb))
    for annotation, colour in zip(placed, colours, strict=True):
        if len(mask := annotation.get("segmentation", ())):
            binary = GenericMask(mask, *new).mask
            visualizer.draw_binary_mask(binary, colour, alpha=0.3)  # holes stay free
    if placed:
        points = [a.get("keypoints") for a in placed]
        visualizer.overlay_instances(
            boxes=[a["bbox"] for a in placed],
            labels=[plain(label) for label in labels],
            keypoints=None if any(p is None for p in points) else np.array(points),
            assigned_colors=list(colours),
        )
    return visualizer.output.get_image()


def truth_and_prediction(
    rgb: np.ndarray,
    objects: Sequence[Annotation],
    detections: Sequence[Annotation],
    names: Mapping[int, str],
    matches: Matches,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The objects of an image and what is detected in it, in colours that say what is right.

    Args:
        detections: those of the image; each has the ``id`` that ``matches`` knows it by.
        names: category id -> name.
        threshold: the lowest score that is drawn.
    """
    found = dict(zip(matches.object_id, matches.found_score >= threshold, strict=True))
    is_right = dict(zip(matches.detection_id, matches.is_right, strict=True))
    kept = [d for d in detections if d["score"] >= threshold]

    def label(annotation: Annotation) -> str:
        crowd = " (crowd)" if annotation.get("iscrowd") else ""
        score = f" {annotation['score']:.2f}" if "score" in annotation else ""
        return f"{names[annotation['category_id']]}{score}{crowd}"

    def drawn(annotations: Sequence[Annotation], verdicts: Mapping[int, bool]) -> np.ndarray:
        colours = {True: RIGHT, False: WRONG, None: LEFT_OUT}
        chosen = [colours[verdicts.get(a["id"])] for a in annotations]
        return draw(rgb, annotations, [label(a) for a in annotations], chosen)

    return drawn(objects, found), drawn(kept, is_right)


def without(annotations: Iterable[Annotation], members: Iterable[str]) -> list[Annotation]:
    """The annotations without ``members``, such as the masks that a detector does not predict."""
    return [{k: v for k, v in a.items() if k not in members} for a in annotations]


def beside(left: np.ndarray, right: np.ndarray, gap: int = 8) -> np.ndarray:
    """Two images of one height side by side."""
    return np.hstack([left, np.full((len(left), gap, 3), 255, np.uint8), right])


def jpeg(rgb: np.ndarray, most_bytes: int) -> bytes:
    """A JPEG of at most ``most_bytes``, of lower quality, and then smaller, where needed."""
    image = Image.fromarray(rgb)
    while True:
        for quality in (88, 75, 60):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= most_bytes or max(image.size) < 64:
                return buffer.getvalue()
        image = image.reduce(2)


def class_colours(categories: Sequence[int]) -> list[np.ndarray]:
    """A colour for each index of a class, always the same."""
    colours = colormap(rgb=True, maximum=1)
    return [colours[k % len(colours)] for k in categories]


def sheet(images: Sequence[Image.Image], columns: int, cell: int) -> Image.Image:
    """One image that shows all in rows, each within ``cell`` pixels."""
    columns = min(columns, len(images))
    whole = Image.new("RGB", (columns * cell, -(-len(images) // columns) * cell), "white")
    for i, image in enumerate(images):
        padded = ImageOps.pad(image, (cell - 8, cell - 8), color="white")
        whole.paste(padded, (i % columns * cell + 4, i // columns * cell + 4))
    return whole
