"""The images that demo.py detects on: files, folders, globs, and every frame of an animation."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from gnws_d2 import Predictor
from gnws_d2.data import read_image
from gnws_d2.errors import DatasetError


@dataclass(frozen=True)
class Frame:
    """An image to detect on.

    Attributes:
        file: its source.
        bgr: (H, W, 3) uint8.
        number: of the frame in an animation or video, from 0; None for an image.
    """

    file: Path
    bgr: np.ndarray
    number: int | None = None

    def as_input(self, predictor: Predictor) -> np.ndarray:
        """What ``predictor`` takes: if that is four channels, the file's, with its alpha."""
        if predictor.channels != 4 or self.number is not None:
            return self.bgr
        return read_image(self.file, predictor.input_format)


def find_files(inputs: Sequence[str]) -> Iterator[Path]:
    """The files that ``inputs`` name: files, the images in folders, and matches of globs."""
    suffixes = set(Image.registered_extensions())
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        elif path.exists():
            yield path
        else:
            # A glob that matches nothing counts as a file that cannot be read.
            yield from sorted(map(Path, glob.glob(os.path.expanduser(name)))) or [path]


def read_frames(file: Path) -> Iterator[Frame]:
    """The image in ``file``, or each frame of an animation.

    Raises:
        DatasetError: see :func:`gnws_d2.data.read_image`.
    """
    if _is_animation(file):
        yield from _animation(file)
    else:
        yield Frame(file, read_image(file, "BGR"))


def _is_animation(file: Path) -> bool:
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        with Image.open(file) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # read_image says what is wrong
        return False


def _animation(file: Path) -> Iterator[Frame]:
    try:
        with Image.open(file) as image:
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                rgb = np.asarray(frame.convert("RGB"))
                yield Frame(file, np.ascontiguousarray(rgb[:, :, ::-1]), number)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise DatasetError(f"{file} cannot be read ({error or type(error).__name__}).") from error
