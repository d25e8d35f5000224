"""Making the Digits dataset: once, in the cache folder, also when several processes ask for it.

Layout of the folder: ``digits_train.json``, ``digits_val.json`` (COCO annotations) and the images
``train/000000.png``, ``val/000000.png`` and so on. Images of labels have the same names:
``train_semantic/`` 0 for ground and class + 1 for digits, ``train_stuff/`` 0 for digits and 1 for
ground, as Detectron2's panoptic models expect.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gnws_d2.errors import DatasetError
from gnws_d2.files import cache_dir, cache_path, locked

from .annotation import annotation, categories, semantic
from .scans import SPLITS, load_scans
from .scene import SIZE, compose

# Changed content needs a new name, so that nobody trains on what an older version made.
NAME = "digits_v3"
SEED = 2020
NUM_TRAIN = 1200
NUM_VAL = 200
SECONDS_PER_IMAGE = 0.012  # for the log
DIGEST = "annotations.sha256"  # not in folders of older versions
WAIT = 1800.0  # seconds for another process that makes it

logger = logging.getLogger(__package__)


def json_file(folder: Path, split: str) -> Path:
    """Name the annotation file of a split ("train" or "val") in Digits' folder."""
    return folder / f"digits_{split}.json"


def image_root(folder: Path, split: str) -> Path:
    """Name the folder of the images of a split ("train" or "val") in Digits' folder."""
    return folder / split


def label_root(folder: Path, split: str, kind: str) -> Path:
    """Name the folder of the label images of a split; ``kind`` is "semantic" or "stuff"."""
    return folder / f"{split}_{kind}"


def write_split(folder: Path, split: str, count: int) -> None:
    """Write ``count`` images of a split and their annotations into ``folder``."""
    scans = load_scans(split)
    image_root(folder, split).mkdir()
    for kind in ("semantic", "stuff"):
        label_root(folder, split, kind).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        scene = compose(np.random.default_rng((SEED, SPLITS.index(split), number)), scans)
        image_id, file_name = number + 1, f"{number:06d}.png"
        # Grain hardly compresses: level 1 makes files 5% larger than the default, in a quarter of
        # the time.
        Image.fromarray(scene.image).save(image_root(folder, split) / file_name, compress_level=1)
        labels = semantic(scene.digits)
        for kind, values in (("semantic", labels), ("stuff", labels == 0)):
            image = Image.fromarray(values.astype(np.uint8))
            image.save(label_root(folder, split, kind) / file_name, compress_level=1)
        images.append({"id": image_id, "file_name": file_name, "width": SIZE, "height": SIZE})
        for digit in scene.digits:
            # Ids begin at 1: pycocotools' evaluation takes 0 for "not matched".
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**ids, **annotation(digit)})
    coco = {
        "info": {"description": f"Digits ({split})", "version": NAME},
        "images": images,
        "annotations": annotations,
        "categories": categories(),
    }
    json_file(folder, split).write_text(json.dumps(coco, separators=(",", ":")))


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` holds Digits; it gets its name only when everything is written.

    Raises:
        DatasetError: what has the folder's name is something else, or its annotation files
            are missing or changed.
    """
    fix = "Delete it; it will be made again."
    if folder.is_symlink() and not folder.exists():
        raise DatasetError(f"{folder} should hold Digits, but links to nothing. {fix}")
    if not folder.exists():
        return False
    for split in SPLITS:
        if not json_file(folder, split).is_file():
            raise DatasetError(
                f"{folder} should hold Digits, but {json_file(folder, split).name} is missing from "
                f"it. {fix}"
            )
    digest = folder / DIGEST
    if digest.is_file() and digest.read_bytes() != annotations_digest(folder):
        raise DatasetError(f"The annotations in {folder} are not those that were made. {fix}")
    return True


def annotations_digest(folder: Path) -> bytes:
    """The SHA-256 of the annotation files; every PNG has checksums of its own."""
    content = b"".join(json_file(folder, split).read_bytes() for split in SPLITS)
    return hashlib.sha256(content).hexdigest().encode()


@functools.cache
def log_found(folder: Path) -> None:
    """Log the folder that is used, once per process."""
    logger.info("Using Digits in %s", folder)


def make_digits(
    root: Path | None = None, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> Path:
    """Make the Digits dataset if it does not exist yet.

    The images are the same every time, byte for byte with the same versions of NumPy and
    Pillow. A smaller set holds the first images of the full one.

    Args:
        root: the folder to hold Digits' folder; the package's cache folder by default.
        num_train: number of training images; numbers other than the usual ones go to a folder
            of their own.
        num_val: number of validation images.

    Returns:
        Digits' folder.

    Raises:
        ImportError: scikit-learn is needed and not installed.
        OSError: ``root`` cannot be written to.
        RuntimeError: Digits' folder exists, but is damaged.
    """
    root = cache_path() if root is None else Path(root).absolute()
    usual = (num_train, num_val) == (NUM_TRAIN, NUM_VAL)
    folder = root / (NAME if usual else f"{NAME}_{num_train}_{num_val}")
    # Before the lock, so that a finished dataset can be used from a read-only place.
    if not is_complete(folder):
        cache_dir(root)
        with locked(root / f"{folder.name}.lock", WAIT):
            if not is_complete(folder):
                seconds = SECONDS_PER_IMAGE * (num_train + num_val)
                logger.info("Making Digits in %s (takes about %.0f s)", folder, seconds)
                # We hold the lock, so a run that was killed left what has this name.
                partial = root / f"{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                for split, count in zip(SPLITS, (num_train, num_val), strict=True):
                    write_split(partial, split, count)
                (partial / DIGEST).write_bytes(annotations_digest(partial))
                partial.rename(folder)
    log_found(folder)
    return folder
