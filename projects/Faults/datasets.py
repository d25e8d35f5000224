"""COCO datasets of one's own that are damaged: annotations, images, and the file as a whole."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from trials import Trial, Wrong

from gnws_d2 import load_config
from gnws_d2.data import coco_truth, digits, fit_to_data
from gnws_d2.data.errors import DatasetError
from gnws_d2.data.filter import load_train_dataset
from gnws_d2.data.images import NamingMapper
from gnws_d2.data.loading import dataset_errors
from gnws_d2.data.resize import build_train_mapper

NAME = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
NAN, INF = float("nan"), float("inf")
BOXES: tuple[Any, ...] = (
    *([NAN, 1, 5, 5], [1, 1, INF, 5], [1, 1, 0, 5], [1, 1, 5, 0], [9, 9, -4, 5], [-90, 1, 5, 5]),
    *([500, 1, 5, 5], [0.1, 0.1, 0.2, 0.2], [1, 1, 500, 5], [1e30, 1, 5, 5], [1, 2, 3], [], None),
    *("1 2 3 4", [[1, 2], [3, 4]], [1, 1, "5", 5], {"x": 1}, [1, 1, 5, 5, 5], [True, 1, 5, 5]),
)
MASKS: tuple[Any, ...] = (
    *([[NAN, 1, 5, 5, 9, 1]], [[1e30, 1, 5, 5, 9, 1]], [[1, 1, 5, 5]], [[1, 1, 5, 5, 9]], "x", 5),
    *([[]], [[500, 500, 510, 500, 510, 510]], [1, 2, 3], [["a", 1, 2, 3, 4, 5]], [[None] * 6]),
    *({}, {"counts": []}, {"size": [5, 5]}, {"counts": [3, 2], "size": [5, 5]}),
    *({"counts": "", "size": [224, 224]}, {"counts": [10**12], "size": [224, 224]}),
    *({"counts": [-1, 50177], "size": [224, 224]}, {"counts": "\x00\xff", "size": [224, 224]}),
    *({"counts": "P" * 10**5, "size": [224, 224]}, {"counts": "1", "size": [10**9, 10**9]}),
    *({"counts": None, "size": [224, 224]}, {"counts": [1], "size": "224"}, {"counts": "x"}),
)
MEMBERS: dict[str, tuple[Any, ...]] = {
    "bbox": BOXES,
    "segmentation": MASKS,
    "iscrowd": ("1", None, 2, -1, [], NAN),
    "category_id": (None, 99, "1", -1, 0.5, [], NAN),
    "image_id": (None, 99, "x", -1, 0.5, []),
    "id": (None, "x", 0.5, [], NAN),
    "area": (NAN, -1, "x", []),
}


@functools.cache
def source() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="faults_digits_"))
    return digits.make_digits(folder, num_train=3, num_val=1)


def copy(folder: Path) -> Path:
    """A dataset in ``folder``: the file of its annotations."""
    shutil.copytree(source() / "train", folder / "images")
    content = json.loads((source() / "digits_train.json").read_text(encoding="utf-8"))
    file = folder / "mine.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def use(file: Path) -> list[dict[str, Any]]:
    """All that training and evaluation do with it; the mapped records."""
    opts = ["DATASETS.TRAIN", str((str(file),)), "DATASETS.TEST", "()"]
    opts += ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(128,)"]
    cfg = fit_to_data(load_config(NAME, opts))
    with dataset_errors(cfg, cfg.DATASETS.TRAIN):
        records = load_train_dataset(cfg)
    coco_truth(str(file))
    mapper = NamingMapper(build_train_mapper(cfg))
    mapped = [mapper(record) for record in records]
    for record in mapped:
        found = record["instances"]
        boxes = found.gt_boxes.tensor.numpy()
        if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
            raise Wrong(f"a box that is none: {boxes.tolist()}"[:200])
        height, width = found.image_size
        if boxes.min(initial=0) < 0 or (boxes > [width, height] * 2).any():
            raise Wrong("a box outside of its image")
    return mapped


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    if len(one) != len(other):
        return False
    return all(
        bool((a["image"] == b["image"]).all())
        and np.array_equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        and a["instances"].gt_classes.tolist() == b["instances"].gt_classes.tolist()
        for a, b in zip(one, other, strict=True)
    )


def good(rng: random.Random, folder: Path) -> str:
    """The same in another order, with other ids and with members of no meaning: accepted."""
    file = copy(folder)
    expected = use(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    step = rng.choice((1, 7, 1000))
    for entry in [*content["images"], *content["annotations"]]:
        entry["id"] *= step
        entry["attributes"] = {"occluded": False}
    for entry in content["annotations"]:
        entry["image_id"] *= step
    rng.shuffle(content["images"])
    content |= {"info": {}, "licenses": []}
    (folder / "other.json").write_text(json.dumps(content), encoding="utf-8")
    try:
        found = use(folder / "other.json")
    except DatasetError as error:
        raise Wrong(f"refused: {error}") from error
    return "" if same(found, expected) else "not the same"


def annotations(rng: random.Random, folder: Path) -> str:
    """One member of one annotation, in every way that is wrong: it has to be refused."""
    file = copy(folder)
    content = json.loads(file.read_text(encoding="utf-8"))
    chosen = rng.choice(content["annotations"])
    match rng.randrange(8):
        case 0:
            del chosen[rng.choice(("bbox", "category_id", "image_id", "id", "segmentation"))]
        case 1:
            chosen["id"] = next(a["id"] for a in content["annotations"] if a is not chosen)
        case _:
            member = rng.choice(sorted(MEMBERS))
            chosen[member] = rng.choice(MEMBERS[member])
    file.write_text(json.dumps(content), encoding="utf-8")
    use(file)
    return f"accepted: {chosen}"[:300]


def images(rng: random.Random, folder: Path) -> str:
    """An image that is damaged, gone or of another size: refused, unless it shows the same."""
    file = copy(folder)
    expected = use(file)
    image = folder / "images" / rng.choice(sorted(os.listdir(folder / "images")))
    content = bytearray(image.read_bytes())
    match rng.randrange(8):
        case 0 | 1 | 2:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            image.write_bytes(content)
        case 3:
            image.write_bytes(content[: rng.randrange(len(content))])
        case 4:
            image.unlink()
            rng.choice((lambda: None, image.mkdir, lambda: os.mkfifo(image)))()
        case 5:
            image.write_bytes(rng.choice((b"", b"x", b"<html>", rng.randbytes(1000))))
        case 6:
            other = json.loads(file.read_text(encoding="utf-8"))
            changed = rng.choice(other["images"])
            changed[rng.choice(("width", "height"))] = rng.choice((1, 0, -5, 100, NAN, "x", None))
            file.write_text(json.dumps(other), encoding="utf-8")
        case 7:
            other = json.loads(file.read_text(encoding="utf-8"))
            one, two = rng.sample(other["images"], 2)
            member = rng.choice(("id", "file_name"))
            one[member] = rng.choice((two[member], None, "/etc/passwd", "../x", 0.5, []))
            file.write_text(json.dumps(other), encoding="utf-8")
    copied = folder / "copy.json"  # the first is registered with what it was
    file.rename(copied)
    return "" if same(use(copied), expected) else "accepted, but it shows something else"


def files(rng: random.Random, folder: Path) -> str:
    """Bytes of the annotation file changed, removed or repeated: refused, or used as it says."""
    file = copy(folder)
    content = bytearray(file.read_bytes())
    inserted = (b"NaN", b"null", b"{", b"[" * 5000, b"9" * 5000, b"\xff")
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(content))
        match rng.randrange(4):
            case 0:
                content[i] ^= 1 << rng.randrange(8)
            case 1:
                del content[i : i + rng.choice((1, 10, 1000))]
            case 2:
                content[i:i] = content[i : i + rng.choice((1, 10, 1000))]
            case 3:
                content[i:i] = rng.choice(inserted)
    file.write_bytes(content)
    mapped = use(file)
    stated = json.loads(content)
    count = sum(a["iscrowd"] == 0 for a in stated["annotations"])
    found = sum(len(record["instances"]) for record in mapped)
    return "" if found <= count else f"{found} objects, the file has {count}"


CLASSES: dict[str, tuple[int, Trial]] = {
    "good datasets": (20, good),
    "annotations": (150, annotations),
    "images": (60, images),
    "annotation files": (60, files),
}
