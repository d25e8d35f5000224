"""The images that demo.py detects on: files, folders, globs, and every frame of an animation."""

import glob
import mimetypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gnws_d2 import Predictor, data
from gnws_d2.errors import DatasetError

# Kinds of images that neither Pillow nor Python's table of types knows.
OTHER_SUFFIXES = {".arw", ".cr2", ".cr3", ".dcm", ".dng", ".nef", ".npy", ".orf", ".raf", ".rw2"}


@dataclass(frozen=True)
class Frame:
    """An image to detect on.

    Attributes:
        file: its source.
        bgr: (H, W, 3) uint8.
        number: of the frame in an animation or video, from 0; None for an image.
        original: (H, W, channels), for a model that does not take three channels.
    """

    file: Path
    bgr: np.ndarray
    number: int | None = None
    original: np.ndarray | None = None


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The files that ``inputs`` name, each once: files, the images in folders, and matches of
    globs. Folders without images and globs without matches stand for themselves: they count as
    files that cannot be read."""
    found: dict[str, Path] = {}
    for name in map(os.path.expanduser, inputs):
        matches = [] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
        for match in map(Path, matches or [name]):
            images = sorted(filter(_is_image, match.iterdir())) if match.is_dir() else []
            for file in images or [match]:
                found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def _is_image(file: Path) -> bool:
    """Whether a file is meant by its folder: an image or video, readable here or not."""
    kind, suffix = mimetypes.guess_type(file.name)[0] or "", file.suffix.lower()
    known = suffix in Image.registered_extensions() or suffix in OTHER_SUFFIXES
    return known or kind.startswith(("image/", "video/"))


def read_frames(file: Path, predictor: Predictor | None = None) -> Iterator[Frame]:
    """The image in ``file``, or each frame of an animation, for ``predictor``.

    Raises:
        DatasetError: it is a folder or a video, or see :func:`gnws_d2.data.read_image`.
    """
    if file.is_dir():
        has_folders = any(child.is_dir() for child in file.iterdir())
        fix = f"Name the folders in it: {file}/*/" if has_folders else "Name a folder of images."
        raise DatasetError(f"{file} has no image in it. {fix}")
    if (mimetypes.guess_type(file.name)[0] or "").startswith("video/") and file.is_file():
        raise DatasetError(f"{file} is a video. Name it by --video-input.")
    forms = ["BGR"] if not predictor or predictor.channels == 3 else ["BGR", predictor.input_format]
    read = [data.read_frames(file, form) for form in forms]
    for (number, bgr), *others in zip(*read, strict=True):
        yield Frame(file, bgr, number, *(original for _, original in others))
