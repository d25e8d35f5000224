"""Reading images: as Detectron2 does, and refusing by name what would be read wrong."""

import logging
import os
import stat
from collections.abc import Iterator
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
        count = getattr(image, "n_frames", 1) if image.format in SEQUENCES else 1
        frames = [n for n in range(count) if _is_frame(image, n)] if count > 1 else []
        is_sequence = len(frames) > 1
        for number, frame in enumerate(frames if is_sequence else [0]):
            image.seek(frame)
            yield number if is_sequence else None, _levels(file, image, format)


def _is_frame(image: Image.Image, number: int) -> bool:
    """Whether it is no smaller copy or mask of another frame, nor the image for programs that do
    not know animated PNG."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and number:
        image.seek(number)
        return not (image.tag_v2.get(SUBFILE, 0) & 0b101 or image.tag_v2.get(OLD_SUBFILE) == 2)
    return number > 0 or not getattr(image, "default_image", False)


def _levels(file: str | os.PathLike, image: ImageFile.ImageFile, format: str | None) -> np.ndarray:
    has_high_bytes = ";16" in str(image.tile)  # which Pillow returns of colors of 16 bits
    image.load()
    _check_range(file, image)
    turned = ImageOps.exif_transpose(image)
    brightest = 1.0
    if _has_16_bits(image):
        values = np.asarray(turned).astype(np.uint32)
        brightest = values.max() / 65535
        turned = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif has_high_bytes:
        brightest = np.max(turned.convert("RGB").getextrema()) / 255
    if 0 < brightest <= 1 / 16 and not getattr(get_worker_info(), "id", 0):
        log_first_n(
            logging.WARNING,
            f"{file} has 16 bits, but its brightest pixel is {brightest:.1%} of white, so it is "
            "read as nearly black. Multiply all images so that white is 65535: 12 bits by 16.",
            name=__name__,
        )
    return convert_PIL_to_numpy(turned, format)


def _has_16_bits(image: Image.Image) -> bool:
    """Whether it is grayscale of 16 bits. Of these formats, "I" is no more."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def is_misread(values: np.ndarray, file: str | os.PathLike, labels: bool) -> bool:
    """Whether ``values``, of any size, are distributed as Detectron2's ``read_image`` reads a file,
    and not as :func:`read_image` does, or :func:`read_labels` if they are ``labels``."""
    # Few images are as white as those whose 16 bits are cut, so few files are opened again.
    if not labels and (values[..., ::8, ::8] >= 255).mean() <= 0.05:
        return False
    try:
        with _opened(file, checksums=False) as image:
            differs = labels and (image.mode in ("P", "1") or _scale(image) != 1)
            if not (differs or _has_16_bits(image)):
                return False
        right = read_labels(file) if labels else read_image(file, "L")
        known = values, detectron2_read_image(str(file), "L"), right
    except DatasetError:  # read in a way of its own
        return False
    given, cut, right = (
        np.bincount(found.astype(int).clip(0, 65535).ravel(), minlength=65536).cumsum() / found.size
        for found in known
    )
    to_cut, to_right = np.abs(given - cut).max(), np.abs(given - right).max()
    return bool(to_right > 0.02 and to_cut < min(0.15, to_right / 3))  # resizing and crops blur


def _scale(image: ImageFile.ImageFile) -> float:
    """By what Pillow multiplies the stored grays of a file that it has not decoded yet."""
    how = image.tile[0][3] if image.tile else ""
    if image.format == "PPM" and image.mode != "F" and isinstance(how, tuple):
        return (65535 if image.mode == "I" else 255) / how[-1]
    return 85 if "L;2" in str(how) else 17 if "L;4" in str(how) else 1


def read_labels(file: str | os.PathLike, dtype: Any = np.int64) -> np.ndarray:
    """The values that a label image stores, of any number of bits or indices of a palette: (H, W).
    Grays that are stored as colors are their levels.

    Raises:
        DatasetError: the image stores colors, or see :func:`read_image`.
    """
    with _opened(file) as image:
        scale = _scale(image)
        labels = np.asarray(ImageOps.exif_transpose(image), dtype=dtype)
        labels = labels if scale == 1 else np.rint(labels / scale).astype(dtype)
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
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        said = f"cannot be read ({error or type(error).__name__}). {RESTORE}"
        if isinstance(error, FileNotFoundError):
            said = "does not exist. Put the image there."
        elif isinstance(error, UnidentifiedImageError):
            said = "cannot be read (Pillow does not know its format). Convert it to PNG or JPEG."
        elif isinstance(error, Image.DecompressionBombError):
            said = f"has more than {most:.0f} million pixels. Cut it into tiles, or raise "
            said += "PIL.Image.MAX_IMAGE_PIXELS."
        raise DatasetError(f"{file} {said}") from error


def _check_range(file: str | os.PathLike, image: Image.Image) -> None:
    values = np.asarray(image if image.mode in ("I", "F") and not _has_16_bits(image) else 0)
    low, high = values.min(), values.max()  # NaN if any is
    if not (low >= 0 and (high == 0 or 1 < high <= 255)):  # else Pillow clips, or nearly all is 0
        raise DatasetError(
            f"{file} has 32-bit pixels (mode {image.mode}) from {low:g} to {high:g}: the level of "
            "white is unknown. Convert it to 8 or 16 bits."
        )
