"""Masks as image files: one an image, with the number of the object in each pixel, such as
Penn-Fudan's, or one an object, such as those of the Data Science Bowl of 2018."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gnws_d2.data import read_labels
from gnws_d2.errors import DatasetError

from ..coco_file import CocoFile
from ..source import Source, is_mask_folder
from .common import ONLY_CLASS, Picture, images_below, log, make_coco, mask

NAME = "instance masks"
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")


def bowl_images(folder: Path) -> list[str]:
    """The images ID/images/ID.png of a folder that have masks ID/masks/*, relative to it."""
    found = []
    for masks in sorted(folder.glob("*/masks")):
        images = images_below(masks.parent / "images")
        if len(images) == 1 and images_below(masks):
            found.append(f"{masks.parent.name}/images/{images[0]}")
    return found


def mask_files(folder: Path) -> list[str]:
    """The masks in a folder that is named so: no JPEG, which does not keep numbers."""
    others = [f for f in Source(folder).folders() if f != folder] if is_mask_folder(folder) else []
    files = images_below(folder) if any(map(images_below, others)) else []
    return [name for name in files if name.lower().endswith(LOSSLESS)]


def read(source: Source) -> CocoFile:
    """All masks of a folder. 0 is no object, and all objects are of one class."""
    folder, pictures = source.file, []
    for name in bowl_images(folder):
        masks = folder / name.split("/")[0] / "masks"
        pictures.append(
            _picture(masks, name, [read_labels(masks / f) for f in images_below(masks)])
        )
    if pictures:
        return make_coco(source, NAME, pictures)
    for file in mask_files(folder):
        stem = re.sub(r"[-_. ]?(mask|instance|label)s?$", "", Path(file).stem, flags=re.I)
        labels = read_labels(folder / file)
        objects = [labels == value for value in np.unique(labels) if value]
        picture = _picture(folder / file, stem, objects or [labels])
        picture.stem = stem  # without suffix, a name is never that of the mask itself
        pictures.append(picture)
    if pictures and all(len(picture.objects) < 2 for picture in pictures):
        log(f"{folder}: no mask has two objects. Number the objects of an image 1, 2, 3, ...")
    places = [place for place in source.folders() if place != folder]
    return make_coco(source, NAME, pictures, places=places)


def _picture(place: Path, name: str, masks: Sequence[np.ndarray]) -> Picture:
    shape = masks[0].shape
    if any(pixels.shape != shape for pixels in masks):
        raise DatasetError(f"{place}: the masks of an image differ in size. Correct them.")
    size = shape[1], shape[0]
    objects = [{"class": ONLY_CLASS, **mask(m, 0, 0, size)} for m in masks if m.any()]
    return Picture(name, size, objects)
