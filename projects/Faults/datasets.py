"""COCO datasets of one's own that are damaged: annotations, images, and the file as a whole."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from trials import Trial, Wrong, accepted, damage

from gnws_d2 import load_config
from gnws_d2.data import Mapper, NamingMapper, load_train_dataset, read_image
from gnws_d2.files import cache_path
from gnws_d2.projects import digits
from gnws_d2.projects.own_data import fit_to_data

CACHE = cache_path()  # a trial has its own
NAME = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
NAN, INF = float("nan"), float("inf")
BOXES: tuple[Any, ...] = (
    *([NAN, 1, 5, 5], [1, 1, INF, 5], [1, 1, 0, 5], [1, 1, 5, 0], [9, 9, -4, 5], [-90, 1, 5, 5]),
    *([500, 1, 5, 5], [0.1, 0.1, 0.2, 0.2], [1, 1, 500, 5], [1e30, 1, 5, 5], [1, 2, 3], [], None),
    *("1 2 3 4", [[1, 2], [3, 4]], [1, 1, "5", 5], {"x": 1}, [1, 1, 5, 5, 5], [True, 1, 5, 5]),
)
SIZE = {"size": [160, 160]}
MASKS: tuple[Any, ...] = (
    *([[NAN, 1, 5, 5, 9, 1]], [[1e30, 1, 5, 5, 9, 1]], [[1, 1, 5, 5]], [[1, 1, 5, 5, 9]], "x", 5),
    *([[]], [[500, 500, 510, 500, 510, 510]], [1, 2, 3], [["a", 1, 2, 3, 4, 5]], [[None] * 6]),
    *({}, {"counts": []}, {"size": [5, 5]}, {"counts": [3, 2], "size": [5, 5]}, {"counts": "x"}),
    *({"counts": "", **SIZE}, {"counts": [10**12], **SIZE}, {"counts": [-1, 25601], **SIZE}),
    *({"counts": "\x00\xff", **SIZE}, {"counts": "P" * 10**5, **SIZE}, {"counts": None, **SIZE}),
    *({"counts": "1", "size": [10**9, 10**9]}, {"counts": [1], "size": "160"}),
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
# Format of Pillow, mode, options of saving.
FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {})),
    *(("JPEG", "L", {}), ("GIF", "P", {}), ("WEBP", "RGB", {}), ("WEBP", "RGB", {"lossless": 1})),
    *(("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "I;16", {})),
    *(("PNG", "I;16", {}), ("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "RGBA", {})),
    *(("BMP", "RGB", {}), ("PPM", "RGB", {})),
)


def source() -> Path:
    """The dataset that the trials damage, made once."""
    return digits.make_digits(CACHE, num_train=3, num_val=1)


def copy(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A dataset in ``folder``: the file of its annotations, and what it holds."""
    shutil.copytree(source() / "train", folder / "images")
    file = Path(shutil.copy(source() / "digits_train.json", folder / "mine.json"))
    return file, json.loads(file.read_text(encoding="utf-8"))


def write(folder: Path, content: Any) -> Path:
    file = folder / "other.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def use(file: Path) -> list[dict[str, Any]]:
    """All that training and evaluation do with it; the mapped records."""
    opts = ["DATASETS.TRAIN", str((str(file),)), "DATASETS.TEST", "()"]
    opts += ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(128,)"]
    cfg = fit_to_data(load_config(NAME, opts))
    mapper = NamingMapper(Mapper(cfg, is_train=True))
    mapped = [mapper(record) for record in load_train_dataset(cfg)]
    COCO(MetadataCatalog.get(str(file)).json_file)  # as an evaluator does
    for record in mapped:
        found = record["instances"]
        boxes = found.gt_boxes.tensor.numpy()
        if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
            raise Wrong(f"a box that is none: {boxes.tolist()}"[:200])
        height, width = found.image_size
        if boxes.min(initial=0) < 0 or (boxes > [width, height] * 2).any():
            raise Wrong("a box outside of its image")
    return mapped


def compare(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    is_same = len(one) == len(other) and all(
        np.array_equal(a["image"], b["image"])
        and np.array_equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        and a["instances"].gt_classes.tolist() == b["instances"].gt_classes.tolist()
        for a, b in zip(one, other, strict=True)
    )
    return "" if is_same else "accepted, but it shows something else"


def annotations(rng: random.Random, folder: Path) -> str:
    """One member of one annotation, in every way that is wrong: it has to be refused."""
    _, content = copy(folder)
    chosen = rng.choice(content["annotations"])
    match rng.randrange(8):
        case 0:
            del chosen[rng.choice(("bbox", "category_id", "image_id", "id", "segmentation"))]
        case 1:
            chosen["id"] = next(a["id"] for a in content["annotations"] if a is not chosen)
        case _:
            member = rng.choice(sorted(MEMBERS))
            chosen[member] = rng.choice(MEMBERS[member])
    use(write(folder, content))
    return f"accepted: {chosen}"[:300]


def images(rng: random.Random, folder: Path) -> str:
    """An image that is damaged, gone or of another size: refused, unless it shows the same."""
    file, content = copy(folder)
    expected = use(file)
    image = folder / "images" / rng.choice(sorted(os.listdir(folder / "images")))
    match rng.randrange(6):
        case 0 | 1:
            image.write_bytes(damage(rng, image.read_bytes()))
        case 2:
            image.unlink()
            rng.choice((lambda: None, image.mkdir, lambda: os.mkfifo(image)))()
        case 3:
            image.write_bytes(rng.choice((b"", b"x", b"<html>", rng.randbytes(1000))))
        case 4:
            changed = rng.choice(content["images"])
            changed[rng.choice(("width", "height"))] = rng.choice((1, 0, -5, 100, NAN, "x", None))
        case 5:
            one, two = rng.sample(content["images"], 2)
            member = rng.choice(("id", "file_name"))
            one[member] = rng.choice((two[member], None, "/etc/passwd", "../x", 0.5, []))
    return compare(use(write(folder, content)), expected)


def files(rng: random.Random, folder: Path) -> str:
    """Bytes of the annotation file changed, removed or repeated: refused, or used as it says."""
    file, _ = copy(folder)
    inserted = (b"NaN", b"null", b"{", b"[" * 5000, b"9" * 5000, b"\xff")
    content = damage(rng, file.read_bytes(), inserted)
    file.write_bytes(content)
    found = sum(len(record["instances"]) for record in use(file))
    count = sum(not a.get("iscrowd") for a in json.loads(content)["annotations"])
    return "" if found <= count else f"{found} objects, the file has {count}"


def formats(rng: random.Random, folder: Path) -> str:
    """An image in another format, perhaps damaged: it shows the same, or is refused. Only PNG has
    checksums: damage to the others may show anything of the same size."""
    _, content = copy(folder)
    chosen = rng.choice(content["images"])
    image = Image.open(folder / "images" / chosen["file_name"]).convert("RGB")
    kind, mode, options = rng.choice(FORMATS)
    suffix = rng.choice((kind.lower(), kind.lower(), "png", "JPG", "txt"))
    chosen["file_name"] = f"{rng.choice(('other', 'ärger 図', 'a.b c#%20'))}.{suffix}"
    path = folder / "images" / chosen["file_name"]
    if mode == "I;16":
        shown = image.convert("L")
        Image.fromarray(np.asarray(shown).astype(np.uint16) * 257).save(path, kind, **options)
    else:
        image.convert(mode).save(path, kind, **options)
        shown = Image.open(path).convert("L")
    expected = np.asarray(shown, dtype=float)
    data = path.read_bytes()
    states = {
        "whole": data,
        "with more behind it": data + rng.randbytes(100),
        "cut off": data[: rng.randrange(len(data))],
        "damaged": damage(rng, data),
    }
    state = rng.choice(list(states))
    path.write_bytes(states[state])
    with accepted(state in ("whole", "with more behind it") or None):
        use(write(folder, content))
        found = read_image(path, "L")[..., 0].astype(float)
    may_differ = state == "damaged" and kind != "PNG"
    # A conversion rounds.
    if found.shape == expected.shape and (may_differ or np.abs(found - expected).max() <= 3):
        return ""
    return f"{kind} {mode}, {state}: shows something else, of size {found.shape}"


def encodings(rng: random.Random, folder: Path) -> str:
    """JSON that says the same in another way, or something that readers disagree on: used as it was
    meant, or refused."""
    file, content = copy(folder)
    expected = use(file)
    image = rng.choice(content["images"])
    path = folder / "images" / image["file_name"]
    chosen = rng.choice([a for a in content["annotations"] if a["image_id"] == image["id"]])
    entry = rng.choice((image, chosen))
    encoding, old, new = "utf-8", "", ""
    match rng.randrange(8):
        case 0:
            encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7"))
        case 1:  # of two members of one name, the last is wrong
            if rng.random() < 0.5:
                chosen["again"], member = [1, 1, 9, 9], "bbox"
            else:
                content["again"], member = [], "annotations"
            old, new = '"again"', f'"{member}"'
        case 2:  # numbers in a form that no reader has to take
            member = rng.choice([m for m in entry if isinstance(entry[m], int)])
            number = entry[member]
            entry[member] = rng.choice((str(number), float(number), 2**63, 2**64, 10**400))
        case 3:
            depth = rng.choice((10, 500, 100_000))
            old, new = "{", f'{{"info": {"[" * depth}null{"]" * depth}, '
        case 4:
            entry = rng.choice((entry, content))
            entry[rng.choice(("info", "attributes", "licenses", "x" * 10_000))] = rng.choice(
                (None, [None], {"a": {"b": [None, {"c": None}]}}, {"": ""}, "\u0000", "\ud800")
            )
        case 5:
            image["file_name"] = rng.choice(("図 ü.png", "a\nb.png", "%s {} $HOME.png", "a" * 204))
            path.rename(folder / "images" / image["file_name"])
        case 6:
            right = (f"../images/{path.name}", str(path), f"./{path.name}")
            wrong = ("", ".", "\0.png", "../mine.json", "/dev/zero", "/proc/self/mem", "\ud800")
            image["file_name"] = rng.choice(rng.choice((right, wrong)))
        case 7:
            for entry in [*content["images"], *content["annotations"]]:
                entry["id"] *= 7
            for annotation in content["annotations"]:
                annotation["image_id"] *= 7
            rng.shuffle(content["images"])
    file.write_bytes(json.dumps(content).replace(old, new, 1).encode(encoding))
    return compare(use(file), expected)


CLASSES: dict[str, tuple[int, Trial]] = {
    "annotations": (150, annotations),
    "images": (60, images),
    "image formats": (150, formats),
    "annotation files": (60, files),
    "encodings": (100, encodings),
}
