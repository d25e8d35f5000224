"""Small COCO files for the tests of this folder."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

import gnws_d2
import gnws_d2.projects.digits  # registers the datasets
from gnws_d2.projects.own_data import fit_to_data

BOXES = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
MASKS = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
SKIP = ("DATALOADER.SKIP_BAD_ANNOTATIONS", "True")
WIDTH, HEIGHT = 64, 48
CATEGORIES = {7: "cat", 3: "dog"}


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def make_coco(
    folder: Path,
    file: str = "mine.json",
    images: int = 4,
    categories: dict[int, str] = CATEGORIES,
    masks: bool = True,
    image_folder: str = "images",
) -> Path:
    """Write a COCO file of two objects an image, the categories in turn, and its images."""
    rng = np.random.default_rng(0)
    (folder / image_folder).mkdir(parents=True, exist_ok=True)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    coco: dict[str, Any] = {"images": [], "annotations": []}
    coco["categories"] = [{"id": i, "name": name} for i, name in categories.items()]
    for index in range(images):
        image = {"id": 10 + index, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT}
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image_folder / f"{index}.png")
        coco["images"].append(image)
        for number in (2 * index, 2 * index + 1):
            box = [4 + 20 * (number % 2), 6 + index % 20, 16, 12]
            annotation = {"id": 100 + number, "image_id": 10 + index, "bbox": box, "iscrowd": 0}
            annotation["category_id"] = list(categories)[number % len(categories)]
            mask = {"segmentation": polygon(*box)} if masks else {}
            coco["annotations"].append({**annotation, **mask, "area": box[2] * box[3]})
    write(folder / file, coco)
    return folder / file


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def write(file: Path, coco: Any) -> None:
    file.write_text(json.dumps(coco))


@contextlib.contextmanager
def changed(file: Path) -> Iterator[dict[str, Any]]:
    """What a file holds, to be changed."""
    coco = read(file)
    yield coco
    write(file, coco)


def change_all(file: Path, **members: Any) -> None:
    """Set members of all annotations."""
    with changed(file) as coco:
        for annotation in coco["annotations"]:
            annotation.update(members)


def config(train: object, val: object = (), *opts: str, name: str = BOXES) -> CfgNode:
    """A config that names one or several files; its output is in the first one's folder."""
    one, two = (tuple(map(str, f if isinstance(f, tuple) else (f,))) for f in (train, val))
    words = ["DATASETS.TRAIN", repr(one), "DATASETS.TEST", repr(two)]
    words += ["OUTPUT_DIR", f"{Path(one[0]).parent}/output"]
    return gnws_d2.load_config(name, [*words, *opts])


def fit(*args: Any, **kwargs: Any) -> CfgNode:
    return fit_to_data(config(*args, **kwargs))


def truth(name: object) -> COCO:
    """pycocotools' reading of what a registered dataset is evaluated against."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(MetadataCatalog.get(str(name)).json_file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_coco(tmp_path)


@pytest.fixture(autouse=True)
def forget_sources():
    """What a test registers is forgotten after it; imported by the tests' files."""
    before = set(DatasetCatalog.list())
    yield
    for name in {*DatasetCatalog.list()} - before:
        DatasetCatalog.pop(name), MetadataCatalog.pop(name)
