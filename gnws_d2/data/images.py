"""Reading images: as Detectron2 does, and refusing by name what would be read wrong."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.detection_utils import read_image as detectron2_read_image
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch.utils.data import get_worker_info

from ..errors import DatasetError

ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange height and width
RAW_EXIF = "Raw profile type exif"  # where ImageMagick puts it in a PNG
# What other formats hold beside their image are previews, layers or sizes of it.
SEQUENCES = ("AVIF", "DCX", "FLI", "GIF", "IM", "PNG", "TIFF", "WEBP")
SUBFILE, OLD_SUBFILE = 254, 255  # the TIFF tags
RESTORE = "Restore the image, or remove it and its annotations from the dataset."


def read_image(file: str | os.PathLike, format: str | None = None) -> np.ndarray:
    """``detectron2.data.detection_utils.read_image``, EXIF orientation applied, for any file.

    16-bit grayscale becomes 8-bit, white staying white (Pillow would clip it, and most pixels
    become white). A PNG's checksums are compared.

    Args:
        format: "BGR", a mode of Pillow such as "RGB" or "L", or "YUV-BT.601"; None: the file's.

    Returns:
        (H, W, C) uint8.

    Raises:
        DatasetError: the file is missing, no regular file, damaged, larger than twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, or has 32-bit pixels that are not from 0 to 255.
    """
    with _opened(file) as image:
        return _levels(file, image, format)


def read_frames(
    file: str | os.PathLike, format: str | None = None
) -> Iterator[tuple[int | None, np.ndarray]]:
    """The frames of an animation or the pages of a TIFF: their numbers, from 0, and each as
    :func:`read_image` reads an image of its pixels. Of other files the one image, and None."""
    with _opened(file) as image:
        frames = []
        if image.format in SEQUENCES:
            frames = [n for n in range(getattr(image, "n_frames", 1)) if _is_frame(image, n)]
            image.seek(0)
        if len(frames) < 2:
            yield None, _levels(file, image, format)
            return
        for number, frame in enumerate(frames):
            image.seek(frame)
            yield number, _levels(file, image, format)


def _is_frame(image: Image.Image, number: int) -> bool:
    """Whether it is no smaller copy or mask of another frame, nor the image for programs that do
    not know animated PNG."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and number:
        image.seek(number)
        return not (image.tag_v2.get(SUBFILE, 0) & 0b101 or image.tag_v2.get(OLD_SUBFILE) == 2)
    return number > 0 or not getattr(image, "default_image", False)


def _levels(file: str | os.PathLike, image: ImageFile.ImageFile, format: str | None) -> np.ndarray:
    colors_of_16_bits = ";16" in str(image.tile) and not _has_16_bits(image)
    image.load()
    _check_range(file, image)
    if colors_of_16_bits:  # of which Pillow returns the high bytes
        _warn_if_dark(file, int(np.max(image.convert("RGB").getextrema())), 255)
    turned = ImageOps.exif_transpose(image)
    if _has_16_bits(image):
        values = np.asarray(turned).astype(np.uint32)
        _warn_if_dark(file, int(values.max()), 65535)
        turned = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return convert_PIL_to_numpy(turned, format)


def _has_16_bits(image: Image.Image) -> bool:
    """Whether it is grayscale of 16 bits. Of these formats, "I" is no more."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def is_misread(
    values: np.ndarray, file: str | os.PathLike, read: Callable[[str | os.PathLike], np.ndarray]
) -> bool:
    """Whether ``values``, of any size, are distributed like what Detectron2's ``read_image``
    returns of a file where ``read`` returns others: it cuts 16 bits at 255, and takes the colors of
    a palette, or black and white, for levels of gray."""
    try:
        with _opened(file, checksums=False) as image:
            if not (_has_16_bits(image) or (read is read_labels and image.mode in ("P", "1"))):
                return False
        known = {"cut": detectron2_read_image(str(file), "L"), "right": read(file)}
    except DatasetError:  # read in a way of its own
        return False
    steps = np.arange(65536)
    given, cut, right = (
        np.searchsorted(np.sort(np.ravel(found)), steps, side="right") / found.size
        for found in (values, *known.values())
    )
    to_cut, to_right = (np.abs(given - shares).max() for shares in (cut, right))
    return bool(to_right > 0.02 and to_cut < min(0.15, to_right / 3))  # resizing blurs


def _warn_if_dark(file: str | os.PathLike, highest: int, white: int) -> None:
    worker = get_worker_info()
    if 0 < highest <= white // 16 and not (worker and worker.id):
        log_first_n(
            logging.WARNING,
            f"{file} has 16 bits, but its highest value is {highest} of {white}: it uses "
            f"{highest / white:.1%} of the range and is read as nearly black. Multiply the values "
            "of all images so that white becomes 65535: those of 12 bits by 16.",
            name=__name__,
        )


def read_labels(file: str | os.PathLike, dtype: Any = np.int64) -> np.ndarray:
    """The values that a label image stores, of any number of bits or indices of a palette: (H, W).
    Grays that are stored as colors are their levels.

    Raises:
        DatasetError: the image stores colors, or see :func:`read_image`.
    """
    with _opened(file) as image:
        labels = np.asarray(ImageOps.exif_transpose(image), dtype=dtype)
        if image.mode in ("RGB", "RGBA") and (labels[..., :3] == labels[..., :1]).all():
            labels = labels[..., 0]
        if labels.ndim != 2:
            raise DatasetError(
                f"{file} has mode {image.mode}, colors instead of the class of each pixel. Store "
                "classes in one channel."
            )
        return labels


def image_size(file: str | os.PathLike) -> tuple[int, int, int]:
    """Width and height as :func:`read_image` returns it, and the EXIF orientation (1: none), from
    the header alone, or of 32-bit pixels from all.

    Raises:
        DatasetError: see :func:`read_image`; damage behind the header is not found.
    """
    with _opened(file, checksums=False) as image:
        _check_range(file, image)
        # Pillow would decode a PNG in search of an EXIF chunk behind its pixels.
        has_exif = image.format != "PNG" or "exif" in image.info or RAW_EXIF in image.info
        orientation = image.getexif().get(ORIENTATION, 1) if has_exif else 1
        width, height = image.size
        if orientation in (5, 6, 7, 8) and image.format != "TIFF":  # which Pillow has turned
            width, height = height, width
        return width, height, orientation


@contextmanager
def _opened(file: str | os.PathLike, checksums: bool = True) -> Iterator[ImageFile.ImageFile]:
    """A lazily decoded image; whatever Pillow raises on it is an DatasetError."""
    try:
        path = PathManager.get_local_path(os.fspath(file))
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would be waited for
            raise DatasetError(f"{file} is not a regular file. Put the image there.")
        # Of a path, Pillow maps plain TIFFs into memory, and scrambles those that are turned.
        with open(path, "rb") as opened, Image.open(opened) as image:
            if checksums and image.format == "PNG":
                with Image.open(path) as again:
                    again.verify()
            yield image
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{file} does not exist. Put the image there.") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DatasetError(
            f"{file} has more than {most:.0f} million pixels. Cut it into tiles, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"{file} cannot be read (Pillow does not know its format). Convert it to PNG or JPEG."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DatasetError(
            f"{file} cannot be read ({error or type(error).__name__}). {RESTORE}"
        ) from error


def _check_range(file: str | os.PathLike, image: Image.Image) -> None:
    values = np.asarray(image if image.mode in ("I", "F") and not _has_16_bits(image) else 0)
    low, high = values.min(), values.max()  # NaN if any is
    if not (low >= 0 and (high == 0 or 1 < high <= 255)):  # else Pillow clips, or nearly all is 0
        raise DatasetError(
            f"{file} has 32-bit pixels (mode {image.mode}) from {low:g} to {high:g}: the level of "
            "white is unknown. Convert it to 8 or 16 bits."
        )
