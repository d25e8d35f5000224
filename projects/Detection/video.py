"""Reading and writing videos, with OpenCV."""

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gnws_d2.errors import FileError
from gnws_d2.projects.detection.inputs import Frame

logger = logging.getLogger("gnws_d2.demo")

FRAMES_PER_SECOND = 25.0  # of a video that does not store it
WINDOW = "gnws_d2: Esc stops"
ESCAPE = 27


@contextmanager
def opened(source: str) -> Iterator[Any]:
    """A ``cv2.VideoCapture`` of a file, an address, or the number of a camera."""
    is_camera = source.isdigit()
    if not is_camera and "://" not in source and not Path(source).is_file():
        raise FileError(f"{source} is not a file. Correct its path.")
    capture = cv2.VideoCapture(int(source) if is_camera else source)
    try:
        if not capture.isOpened():
            kind = f"camera {source}" if is_camera else source
            raise FileError(
                f"{kind} cannot be opened. Check that it works in another program and that this "
                "OpenCV reads its format."
            )
        yield capture
    finally:
        capture.release()


def frames(capture: Any, file: Path) -> Iterator[Frame]:
    """The frames of an opened video, until its end."""
    for number in itertools.count():
        read, bgr = capture.read()
        if not read:
            return
        yield Frame(file, bgr, number)


def size(capture: Any) -> tuple[int, int]:
    """The width and height of the frames of an opened video."""
    return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def frames_per_second(capture: Any) -> float:
    found = float(capture.get(cv2.CAP_PROP_FPS))
    return found if np.isfinite(found) and 0 < found <= 1000 else FRAMES_PER_SECOND


class VideoFile:
    """Writes frames of one size to a WebM file, which appears with the first one."""

    def __init__(self, file: Path, frames_per_second: float) -> None:
        self.file = file
        self._rate = frames_per_second
        self._writer: Any = None
        self._size: tuple[int, int] | None = None

    def write(self, rgb: np.ndarray) -> None:
        height, width = rgb.shape[:2]
        if self._writer is None:
            self._size = width, height
            codec = cv2.VideoWriter.fourcc(*"VP80")  # of those in browsers, OpenCV's fastest
            stderr = os.dup(2)  # where OpenCV says that the tag is not supported, and works
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 2)
            self._writer = cv2.VideoWriter(str(self.file), codec, self._rate, self._size)
            os.dup2(stderr, 2)
            os.close(stderr)
            if not self._writer.isOpened():
                raise FileError(f"{self.file} cannot be written. Choose another folder.")
        if (width, height) != self._size:  # OpenCV would leave the frame out in silence
            rgb = cv2.resize(rgb, self._size)
        self._writer.write(np.ascontiguousarray(rgb[:, :, ::-1]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


class Window:
    """Shows frames while they come, where this OpenCV can open a window."""

    def __init__(self) -> None:
        self._works = True

    def show(self, rgb: np.ndarray) -> bool:
        """Returns whether the user has pressed Esc."""
        try:
            if self._works:
                cv2.imshow(WINDOW, np.ascontiguousarray(rgb[:, :, ::-1]))
                return cv2.waitKey(1) == ESCAPE
        except cv2.error:
            self._works = False
            logger.warning(
                "This OpenCV opens no window (opencv-python-headless, or no display): frames are "
                "only written. Ctrl-C stops."
            )
        return False
