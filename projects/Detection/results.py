"""The results of demo.py: drawn images, label images and JSON files in one folder."""

import errno
import logging
from collections import deque
from itertools import chain, count
from pathlib import Path

import numpy as np

from gnws_d2 import Predictor
from gnws_d2.errors import FileError
from gnws_d2.projects.detection.coco_detections import (
    CocoDetections,
    PanopticSegments,
    labels_image,
    write_png,
)
from gnws_d2.projects.detection.drawing import draw, to_cpu
from gnws_d2.projects.detection.image_ids import ImageIds
from gnws_d2.projects.detection.inputs import Frame
from gnws_d2.projects.detection.tiles import detect_in_tiles
from gnws_d2.projects.detection.tracking import Tracks

logger = logging.getLogger("gnws_d2.demo")


class Results:
    """Detects, draws and writes images one by one, and at the end detections.json.

    Args:
        predictor: of any kind of model.
        output: the folder to write to.
        image_ids: see :class:`CocoDetections`.
    """

    def __init__(
        self, predictor: Predictor, output: Path, image_ids: ImageIds | None = None
    ) -> None:
        self.predictor = predictor
        self.output = output
        self.tiles = 1 << 30, 0.0  # side and overlap, see detect_in_tiles
        self.tracks: Tracks | None = None  # of a video
        self.detections = CocoDetections(output, predictor, image_ids)
        self._panoptic = PanopticSegments(self.detections, predictor.metadata)
        self._names = OutputNames()
        self._images: deque[Path] = deque(maxlen=1000)  # the last ones

    def add(self, frame: Frame, in_video: bool = False) -> np.ndarray:
        """Detect on ``frame``, and write the images that belong to it.

        Args:
            in_video: of a frame, the drawn image keeps its size, and is not written.

        Returns:
            The frame with the detections drawn, RGB, (H, W, 3) uint8.
        """
        image = frame.bgr if frame.original is None else frame.original
        name = f"{self._names.of(frame)}.png"
        parts = map(to_cpu, detect_in_tiles(self.predictor, image, *self.tiles))
        first = next(parts)  # or the image is refused
        image_id, drawn = self.detections.add_image(frame), frame.bgr[:, :, ::-1]
        for found in chain([first], parts):
            if "instances" in found:
                if self.tracks:
                    found["instances"].track_ids = self.tracks.number(found["instances"])
                self.detections.add(image_id, found["instances"])
            if "panoptic_seg" in found:
                segments = self._panoptic.add(image_id, name, *found["panoptic_seg"])
                self._write(segments, Path("panoptic") / name)
            elif "sem_seg" in found:
                self._write(labels_image(found["sem_seg"]), Path("labels") / name)
            metadata = self.predictor.metadata
            drawn = draw(drawn[:, :, ::-1], found, metadata, enlarges=not in_video)
        self.detections.flush()
        if not in_video:
            self._write(drawn, Path(name))
        return drawn

    def _write(self, pixels: np.ndarray, name: Path) -> None:
        write_png(pixels, self.output / name)
        self._images.append(self.output / name)

    def write(self) -> None:
        """Write detections.json and panoptic.json. On a full disk, remove the last drawn images
        to make room.

        Raises:
            FileError: they cannot be written.
        """
        found = self.detections
        while True:
            try:
                found.write()
                self._panoptic.write(self.output / "panoptic.json")
                break
            except FileError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._images:
                    logger.error("%d bytes of detections stay in %s.", found.size, found.lines)
                    raise
                room = 0
                while room <= found.size and self._images:
                    removed = self._images.pop()
                    room += removed.stat().st_size if removed.exists() else 0
                    removed.unlink(missing_ok=True)
                    logger.warning("%s is removed to make room for the detections.", removed)
        found.lines.unlink(missing_ok=True)
        counts = found.count["annotations"], found.images, self.output
        logger.info("%d detections in %d images, in %s", *counts)


class OutputNames:
    """Names of the output files: "photo.jpg" for photo.jpg, and "photo.jpg_2" for another file of
    that name. Frames of an animation end in "_frame00012"."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._of_file: dict[Path, str] = {}

    def of(self, frame: Frame) -> str:
        if frame.file not in self._of_file:
            name, more = frame.file.name, count(2)
            while name.lower() in self._taken:  # some file systems know no upper case
                name = f"{frame.file.name}_{next(more)}"
            self._taken.add(name.lower())
            self._of_file[frame.file] = name
        number = "" if frame.number is None else f"_frame{frame.number:05d}"
        return self._of_file[frame.file] + number
