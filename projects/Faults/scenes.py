"""Small COCO datasets and images of which everything is known, for the trials to change."""

import json
import math
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from pycocotools import mask as rle

from gnws_d2 import load_config
from gnws_d2.projects.own_data import fit_to_data

SMALL = "Small/mask_rcnn_R_18_FPN_gn_ws.yaml"
WIDTH, HEIGHT = 128, 96
OPTS = "MODEL.MASK_ON False INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 64 "
OPTS += "MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.CONV_DIM 32 "
DEPTHS = {"I;16": "<u2", "I;16B": ">u2", "F": "<f4"}
JPEG, AVIF = {"quality": 95, "subsampling": 0}, {"quality": 100, "subsampling": "4:4:4"}
# Format of Pillow, modes, options of saving, and how many images a file may hold.
FILES: tuple[tuple[str, tuple[str, ...], dict[str, Any], int], ...] = (
    *(("JPEG", ("RGB", "L", "CMYK"), {**JPEG, "progressive": n}, 1) for n in (False, True)),
    *(("PNG", ("I;16", "P", "1", "RGBA"), {}, 1), ("BMP", ("RGB",), {}, 1)),
    *(("PPM", ("RGB",), {}, 1), ("GIF", ("P",), {}, 1), ("WEBP", ("L",), {"quality": 100}, 1)),
    *(("MPO", ("RGB",), JPEG, 4), ("AVIF", ("RGB",), AVIF, 4), ("PNG", ("L",), {}, 4)),
    *(("TIFF", (m,), {}, 4) for m in ("I;16", "I;16B", "L", "RGB", "F")),
    ("TIFF", ("I;16", "I;16B", "L", "RGB"), {"compression": "tiff_lzw"}, 4),
    *(("GIF", ("RGB",), {"disposal": n}, 4) for n in range(3)),
    *(("PNG", ("RGB",), {"disposal": n, "blend": n % 2}, 4) for n in range(3)),
    *(("PNG", ("RGB",), {"default_image": True}, 4), ("WEBP", ("RGB",), {"lossless": True}, 4)),
)


def integers(rng: random.Random, highest: int, size: tuple[int, ...]) -> np.ndarray:
    """From 0 to ``highest``."""
    return np.random.default_rng(rng.getrandbits(32)).integers(0, highest + 1, size)


def drawn(rng: random.Random, mode: str, width: int, height: int) -> tuple[Image.Image, np.ndarray]:
    """An image of blocks, and the levels that it shows: (H, W, 3) uint8."""
    size = (height // 8, width // 8, *([3] * (mode not in DEPTHS and mode != "L")))
    values = integers(rng, 65535 if mode in DEPTHS else 255, size).repeat(8, 0).repeat(8, 1)
    if mode in DEPTHS:
        shown = (values + 128) // 257
        return Image.fromarray(values.astype(DEPTHS[mode])), np.stack([shown] * 3, -1)
    image = Image.fromarray(values.astype(np.uint8)).convert(mode)
    return image, np.asarray(image.convert("RGB"), int)


def turned(levels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, as EXIF defines its tag 274."""
    levels = levels.swapaxes(0, 1) if orientation >= 5 else levels
    levels = levels[:, ::-1] if orientation in (2, 3, 6, 7) else levels
    return levels[::-1] if orientation in (3, 4, 7, 8) else levels


def picture(
    rng: random.Random, folder: Path, size: tuple[int, int], most: int
) -> tuple[Path, str, list[np.ndarray], int]:
    """A file of up to ``most`` pages or frames, perhaps turned; the upright ones are of ``size``:
    width and height.

    Returns:
        The file; its format and modes; what it shows, each (H, W, 3); and how many levels a decoder
        may differ. A file of mode F has to be refused.
    """
    kind, modes, options, pages_of_kind = rng.choice(FILES)
    # GIF, BMP and PPM have no EXIF, and Pillow crashes where it writes turned frames as AVIF.
    orientation = 1 if kind in ("GIF", "BMP", "PPM", "AVIF") else rng.randint(1, 8)
    size = size if orientation < 5 else size[::-1]
    pages, expected = [], []
    for number in range(rng.randint(1, min(most, pages_of_kind))):
        is_small = number and kind in ("MPO", "TIFF") and rng.random() < 0.5
        page, shown = drawn(rng, rng.choice(modes), *(s // 2 if is_small else s for s in size))
        pages.append(page)
        expected.append(turned(shown, orientation))
    exif = Image.Exif()
    exif[274] = orientation
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    file = folder / f"file.{rng.choice((kind.lower(), 'jpg' if kind == 'MPO' else kind.lower()))}"
    pages[0].save(file, kind, exif=exif, **options, **more)
    if kind == "MPO" or "default_image" in options:  # of which the first is no frame
        expected = expected[:1] if kind == "MPO" or len(expected) < 3 else expected[1:]
    tolerance = 8 * (kind in ("JPEG", "MPO", "AVIF") or "quality" in options)
    return file, f"{kind} {pages[0].mode}, orientation {orientation}", expected, tolerance


def mask(rng: random.Random, box: list[float], size: tuple[int, int]) -> dict:
    """What an annotation says of a mask in ``box``, in an image of ``size``: (height, width)."""
    x, y, w, h = box
    if rng.random() < 0.4:  # a polygon, a star
        number = rng.randint(5, 30)
        angles = (2 * math.pi * (i + rng.random()) / number for i in range(number))
        radii = ((rng.uniform(0.3, 1), a) for a in angles)
        star = np.array([[r * math.cos(a), r * math.sin(a)] for r, a in radii])
        points = np.array([x, y]) + np.array([w, h]) / 2 * (1 + star)
        around = [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]
        found: Any = [points.ravel().tolist()]
        return {"segmentation": found, "bbox": around, "area": cv2.contourArea(np.float32(points))}
    inside = np.zeros(size, np.uint8, order="F")
    inside[int(y) : int(y + h), int(x) : int(x + w)] = integers(rng, 1, (int(y + h) - int(y), 1))
    inside[int(y + h / 2), int(x) : int(x + w)] = 1  # stripes
    ends = np.flatnonzero(np.diff(inside.ravel(order="F"), prepend=0, append=2))
    found = {"size": list(size), "counts": np.diff(ends, prepend=0).tolist()}
    if rng.random() < 0.5:
        found["counts"] = rle.encode(inside)["counts"].decode()
    around = list(map(float, cv2.boundingRect(inside)))
    return {"segmentation": found, "bbox": around, "area": int(inside.sum())}


def scene(
    rng: random.Random, folder: Path, objects: list[int], cell: int = 32, side: int = WIDTH
) -> dict[str, Any]:
    """What a COCO file says of images of ``side`` x 3/4 ``side``, each of one color, with as many
    ``objects``, which do not touch: one in a cell. The images are in ``folder``/images."""
    (folder / "images").mkdir()
    height = side * 3 // 4
    first, ids = rng.choice((0, 1, 10**12)), rng.sample(range(200), 3)
    categories = [{"id": n, "name": name} for n, name in zip(ids, "abc", strict=True)]
    del categories[rng.choice((2, 3)) :]  # "c" has no object
    rng.shuffle(categories)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    for index, number in enumerate(rng.sample(range(10**6), len(objects))):
        image = {"id": number, "file_name": f"{index}.png", "width": side, "height": height}
        color = (index * 20, 250 - index * 20, 0)
        Image.new("RGB", (side, height), color).save(folder / "images" / f"{index}.png")
        content["images"].append(image)
        for place in rng.sample(range(side // cell * (height // cell)), objects[index]):
            y, x = (n * cell + rng.random() for n in divmod(place, side // cell))
            w, h = (rng.uniform(0.6, 0.9) * cell for _ in range(2))
            found = {"id": first + len(content["annotations"]), "image_id": number, "iscrowd": 0}
            found.update(mask(rng, [x, y, w, h], (height, side)), category_id=rng.choice(ids[:2]))
            content["annotations"].append(found)
    return content


def move(folder: Path, image: dict[str, Any], name: str) -> Path:
    """Give the file of an image of :func:`scene` another name, and return its path."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return (folder / "images" / image["file_name"]).rename(file)


def write(folder: Path, content: Any) -> Path:
    file = folder / "mine.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def fit(file: object, opts: str = "", config: str = SMALL, test: object = None) -> CfgNode:
    """The config that ``gnws train`` fits to a file. ``opts`` are pairs, separated by spaces."""
    names = ["DATASETS.TRAIN", f"('{file}',)", "DATASETS.TEST", f"('{test or file}',)"]
    return fit_to_data(load_config(config, [*names, *(OPTS + opts).split()]))
