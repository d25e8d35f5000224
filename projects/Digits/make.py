"""Making the Digits dataset: once, in the cache folder, even if several processes ask for it.

Layout of the folder: ``digits_train.json``, ``digits_val.json`` (COCO annotations) and the images
``train/000000.png``, ``val/000000.png`` and so on. Label images have the same names:
``train_semantic/`` has 0 for background and class + 1 for digits, ``train_stuff/`` has 0 for
digits and 1 for background, as Detectron2's panoptic models expect.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from gnws_d2.files import cache_dir, cache_path, locked

from .scans import CLASSES, SPLITS, load_scans
from .scene import SIZE, Digit, compose

# Changed content needs a new name, so that nobody trains on what an older version made.
NAME = "digits_v3"
SEED = 2020
NUM_TRAIN = 1200
NUM_VAL = 200
WAIT = 1800.0  # seconds for another process that makes it
# The outermost points of a digit, the keypoints that every class has.
KEYPOINTS = ("top", "bottom", "left", "right")

logger = logging.getLogger(__package__)


def make_digits(
    root: Path | None = None, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> Path:
    """Make the Digits dataset if it does not exist yet.

    The images are the same every time, byte for byte with the same versions of NumPy and
    Pillow. A smaller set holds the first images of the full one.

    Args:
        root: the folder to hold Digits' folder; the package's cache folder by default.
        num_train: number of training images. Numbers other than the defaults go to a folder of
            their own.
        num_val: number of validation images.

    Returns:
        Digits' folder.

    Raises:
        GnwsError: scikit-learn is needed and not installed.
        FileError: ``root`` cannot be written to.
    """
    root = cache_path() if root is None else Path(root).absolute()
    is_full = (num_train, num_val) == (NUM_TRAIN, NUM_VAL)
    folder = root / (NAME if is_full else f"{NAME}_{num_train}_{num_val}")
    # The folder gets its name when everything is written. Before the lock, so that a finished
    # dataset can be used from a read-only place.
    if not folder.exists():
        cache_dir(root)
        with locked(root / f"{folder.name}.lock", WAIT):
            if not folder.exists():
                logger.info("Making Digits in %s (takes seconds)", folder)
                # We hold the lock, so a run that was killed left what has this name.
                partial = root / f"{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                for split, count in zip(SPLITS, (num_train, num_val), strict=True):
                    write_split(partial, split, count)
                partial.rename(folder)
    return folder


def json_file(folder: Path, split: str) -> Path:
    """The annotation file of a split ("train" or "val") in Digits' folder."""
    return folder / f"digits_{split}.json"


def write_split(folder: Path, split: str, count: int) -> None:
    """Write ``count`` images of a split and their annotations into ``folder``."""
    scans = load_scans(split)
    names = (split, f"{split}_semantic", f"{split}_stuff")
    for name in names:
        (folder / name).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        image, digits = compose(np.random.default_rng((SEED, SPLITS.index(split), number)), scans)
        image_id, file_name = number + 1, f"{number:06d}.png"
        labels = np.zeros((SIZE, SIZE), np.uint8)
        for digit in digits:
            labels[digit.mask] = digit.label + 1
        for name, pixels in zip(names, (image, labels, labels == 0), strict=True):
            # Grain hardly compresses: level 1 takes a quarter of the time, for 5% more.
            file = folder / name / file_name
            Image.fromarray(pixels.astype(np.uint8)).save(file, compress_level=1)
        images.append({"id": image_id, "file_name": file_name, "width": SIZE, "height": SIZE})
        for digit in digits:
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


def categories() -> list[dict[str, Any]]:
    """List the COCO categories; ids begin at 1, as Detectron2 expects of a COCO file."""
    common = {"supercategory": "digit", "keypoints": list(KEYPOINTS), "skeleton": []}
    return [{"id": i + 1, "name": name, **common} for i, name in enumerate(CLASSES)]


def annotation(digit: Digit) -> dict[str, Any]:
    """Describe a digit for COCO, without the ids of the annotation and of its image.

    ``bbox`` is [x, y, width, height] in pixels, tight around the visible mask. ``scan`` is not
    part of COCO; it names the scan that the digit was made from.
    """
    rle = mask_util.encode(np.asfortranarray(digit.mask, dtype=np.uint8))
    return {
        "category_id": digit.label + 1,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "keypoints": keypoints(digit.mask),
        "num_keypoints": len(KEYPOINTS),
        "scan": digit.scan,
    }


def keypoints(mask: np.ndarray) -> list[float]:
    """The outermost pixels of a mask, (H, W) bool: [x, y, 2, ...] for :data:`KEYPOINTS`, 2 meaning
    visible. Of several pixels equally far out, the middle one."""
    ys, xs = np.nonzero(mask)
    points = []
    for along, extreme in ((ys, ys.min()), (ys, ys.max()), (xs, xs.min()), (xs, xs.max())):
        outermost = np.flatnonzero(along == extreme)
        middle = outermost[len(outermost) // 2]
        points += [float(xs[middle]), float(ys[middle]), 2]
    return points
