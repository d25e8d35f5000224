"""Detections in COCO's formats: detections.json, label images and panoptic images."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as rle

from gnws_d2 import Predictor
from gnws_d2.errors import FileError
from gnws_d2.files import atomic_write
from gnws_d2.projects.detection.image_ids import Id, ImageIds
from gnws_d2.projects.detection.inputs import Frame


class CocoDetections:
    """Detections of many images, to be scored against annotations of the same dataset.

    Until :meth:`write`, each is a line of a file, so that memory does not grow, and what a killed
    program had found is there: ``{"images": {...}}`` or ``{"annotations": {...}}``.

    Args:
        folder: gets the file of lines, and detections.json.
        predictor: knows the names of classes, and their ids in the annotations.
        image_ids: by default, images are numbered from 1.
    """

    def __init__(
        self, folder: Path, predictor: Predictor, image_ids: ImageIds | None = None
    ) -> None:
        self.file = folder / "detections.json"
        self.lines, self.size = folder / f"detections_{uuid.uuid4().hex[:8]}.jsonl", 0  # bytes
        self.images, self.count = 0, Counter[str]()  # of the lines, by kind
        self._pending: list[str] = []
        self._image_ids = image_ids or ImageIds()
        # Of classes; empty if their names are unknown.
        self.ids = dict(enumerate(predictor.category_ids))
        named = zip(predictor.category_ids, predictor.classes, strict=True)
        self.categories = [{"id": id, "name": name} for id, name in named]

    def add_image(self, frame: Frame) -> Id:
        """Add an image and return its id."""
        height, width = frame.bgr.shape[:2]
        id = self._image_ids.of(frame)
        number = {} if frame.number is None else {"frame": frame.number}
        image = {"id": id, "file_name": str(frame.file), "width": width, "height": height}
        self.append("images", {**image, **number})
        self.images += 1
        return id

    def add(self, image_id: Id, instances: Instances) -> None:
        """Add the detections in an image, with their ``track_ids`` where they have them."""
        tracks = instances.track_ids.tolist() if instances.has("track_ids") else None
        for place, result in enumerate(instances_to_coco_json(instances, image_id)):
            category, box, mask = result["category_id"], result["bbox"], result.get("segmentation")
            result["id"] = self.count["annotations"] + 1
            result["category_id"] = self.ids.get(category, category)
            result["iscrowd"] = 0
            result["area"] = float(rle.area(mask)) if mask else box[2] * box[3]
            if tracks:
                result["track_id"] = tracks[place]
            self.append("annotations", result)

    def append(self, kind: str, member: dict[str, Any]) -> None:
        """Add a line, which :meth:`flush` writes."""
        self._pending.append(f"{json.dumps({kind: member})}\n")
        self.count[kind] += 1

    def flush(self) -> None:
        """Write the new lines. On a full disk they stay new. Raises FileError."""
        text = "".join(self._pending).encode()
        with _file_errors(self.lines), self.lines.open("r+b" if self.size else "wb") as opened:
            opened.seek(self.size)  # over what a full disk has left of a line
            opened.write(text)
        self.size += len(text)
        self._pending.clear()

    def write(self) -> None:
        """Write detections.json, unless no image has been added. Raises FileError."""
        if self.images:
            self.flush()
            self.write_coco(self.file, "annotations", self.categories)

    def content(self) -> dict[str, list[dict[str, Any]]]:
        """What :meth:`write` has written."""
        return json.loads(self.file.read_bytes())

    def write_coco(self, file: Path, kind: str, categories: Sequence[dict[str, Any]]) -> None:
        """Write a COCO file whose annotations are the lines of ``kind``. Raises FileError."""
        with _writing(file) as partial, partial.open("w") as out:
            for start, member in (('{"images": [', "images"), ('], "annotations": [', kind)):
                out.write(start)
                head, comma = f'{{"{member}": ', ""
                with self.lines.open() as lines:
                    for line in lines:
                        if line.startswith(head):
                            out.write(comma + line[len(head) : -2])
                            comma = ", "
            out.write(f'], "categories": {json.dumps(categories)}}}')


class PanopticSegments:
    """Panoptic results in COCO's format: images whose colors are ids of segments, and a JSON file.

    Args:
        detections: knows the ids of images and things.
        metadata: of the predictor.
    """

    def __init__(self, detections: CocoDetections, metadata: Metadata) -> None:
        self._detections = detections
        by_id = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self._stuff_ids = {index: id for id, index in by_id.items()}
        self._stuff_classes = list(metadata.get("stuff_classes") or [])

    def add(
        self, image_id: Id, file_name: str, segments: torch.Tensor, infos: Sequence[dict[str, Any]]
    ) -> np.ndarray:
        """Add the segments of an image.

        Returns:
            Their image, (H, W, 3) uint8: red + 256 green + 65536 blue is the segment's id.
        """
        ids = segments.numpy().astype(np.uint32)
        described = []
        for info in infos:
            known = self._detections.ids if info["isthing"] else self._stuff_ids
            category, isthing = info["category_id"], int(info["isthing"])
            facts = {"category_id": known.get(category, category), "isthing": isthing}
            described.append({**info, **facts, "area": int((ids == info["id"]).sum())})
        facts = {"image_id": image_id, "file_name": file_name, "segments_info": described}
        self._detections.append("panoptic", facts)
        return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)

    def write(self, file: Path) -> None:
        """Write ``file``, unless nothing has been added."""
        if self._detections.count["panoptic"]:
            things = [{**category, "isthing": 1} for category in self._detections.categories]
            stuff = [
                {"id": self._stuff_ids.get(index, index), "name": name, "isthing": 0}
                for index, name in enumerate(self._stuff_classes)
            ]
            self._detections.write_coco(file, "panoptic", [*things, *stuff])


def labels_image(scores: torch.Tensor) -> np.ndarray:
    """The class of each pixel, (H, W) uint8, or uint16 from 257 classes on.

    Args:
        scores: (classes, H, W).
    """
    labels = scores.argmax(0).cpu().numpy()
    return labels.astype(np.uint8 if len(scores) <= 256 else np.uint16)


def write_png(pixels: np.ndarray, file: Path) -> None:
    """Write ``file`` atomically; make its folder if needed. Raises FileError."""
    with _writing(file) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


@contextmanager
def _writing(file: Path) -> Iterator[Path]:
    with _file_errors(file), atomic_write(file) as partial:
        yield partial


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Make the folder of ``file``, and say that it cannot be written if the block raises."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{file} cannot be written ({reason}). Make room, or choose another folder"
        raise FileError(error.errno, message) from error
