"""Objects and detections drawn into their images."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask
from PIL import Image, ImageOps
from pycocotools import mask as mask_util

from .matching import Matches
from .painter import Painter

SIDE = 540  # pixels of the longer side of a drawn image; smaller ones are enlarged
RIGHT, WRONG, LEFT_OUT = "#2E9BFF", "#FF5A1F", "#B0B0B0"
Annotation = Mapping[str, Any]  # of an object or a detection, in COCO's form


def draw(
    rgb: np.ndarray,
    annotations: Sequence[Annotation],
    names: Mapping[int, str],
    colors: Sequence[Any],
    *,
    side: int = SIDE,
) -> np.ndarray:
    """Draw boxes, masks and labels, after scaling the image to ``side`` pixels.

    Args:
        rgb: (H, W, 3) uint8.
        annotations: with ``category_id`` and ``bbox``, XYWH in pixels of ``rgb``; where they have
            them, ``segmentation`` as polygons or RLE, and ``keypoints``. A ``score`` is part of the
            label.
        names: category id -> name.
        colors: one for each annotation, as matplotlib takes them.

    Returns:
        (H', W', 3) uint8.
    """
    old = rgb.shape[:2]
    new = tuple(max(1, round(length * side / max(old))) for length in old)
    resize = ResizeTransform(*old, *new)
    # It changes its argument.
    placed = [
        transform_instance_annotations(
            {**_compressed(a), "bbox_mode": BoxMode.XYWH_ABS}, [resize], new
        )
        for a in annotations
    ]
    painter = Painter(resize.apply_image(rgb))
    for annotation, color in zip(placed, colors, strict=True):
        if len(mask := annotation.get("segmentation", ())):
            painter.draw_binary_mask(GenericMask(mask, *new).mask, color, alpha=0.3)
    painter.overlay_instances(
        boxes=np.array([a["bbox"] for a in placed]).reshape(-1, 4),
        labels=[_label(a, names) for a in annotations],
        assigned_colors=list(colors),
    )
    for annotation in placed:
        if "keypoints" in annotation:
            painter.draw_and_connect_keypoints(annotation["keypoints"])
    return painter.output.get_image()


def _compressed(annotation: Annotation) -> Annotation:
    """With RLE as Detectron2 takes it: COCO's crowds have lists of numbers."""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        return {**annotation, "segmentation": mask_util.frPyObjects(mask, *mask["size"])}
    return annotation


def _label(annotation: Annotation, names: Mapping[int, str]) -> str:
    category = annotation["category_id"]
    score = f" {annotation['score']:.0%}" if "score" in annotation else ""
    crowd = " (crowd)" if annotation.get("iscrowd") else ""
    return f"{names.get(category, category)}{score}{crowd}"


def truth_and_prediction(
    rgb: np.ndarray,
    objects: Sequence[Annotation],
    detections: Sequence[Annotation],
    names: Mapping[int, str],
    matches: Matches,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The objects of an image and what is detected in it, in colors that say what is right.

    Args:
        detections: those of the image; each has the ``id`` that ``matches`` knows it by.
        names: category id -> name.
        threshold: the lowest score that is drawn.
    """
    found = {id_: score >= threshold for id_, score in matches.found.items()}

    def drawn(annotations: Sequence[Annotation], verdicts: Mapping[int, bool]) -> np.ndarray:
        colors = {True: RIGHT, False: WRONG, None: LEFT_OUT}
        return draw(rgb, annotations, names, [colors[verdicts.get(a["id"])] for a in annotations])

    kept = [d for d in detections if d["score"] >= threshold]
    return drawn(objects, found), drawn(kept, matches.verdicts)


def without(annotations: Sequence[Annotation], members: set[str]) -> list[Annotation]:
    """The annotations without ``members``, such as the masks that a detector does not predict."""
    return [{k: v for k, v in a.items() if k not in members} for a in annotations]


def beside(left: np.ndarray, right: np.ndarray, gap: int = 8) -> np.ndarray:
    """Two images of one height side by side."""
    return np.hstack([left, np.full((len(left), gap, 3), 255, np.uint8), right])


def jpeg(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def sheet(images: Sequence[Image.Image], columns: int, cell: int) -> Image.Image:
    """One image that shows all in rows, each within ``cell`` pixels."""
    columns = min(columns, len(images))
    whole = Image.new("RGB", (columns * cell, -(-len(images) // columns) * cell), "white")
    for i, image in enumerate(images):
        padded = ImageOps.pad(image, (cell - 8, cell - 8), color="white")
        whole.paste(padded, (i % columns * cell + 4, i // columns * cell + 4))
    return whole
