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
from PIL import Image
from trials import Trial, Wrong

from gnws_d2 import load_config
from gnws_d2.data.filter import load_train_dataset
from gnws_d2.data.images import NamingMapper, read_image
from gnws_d2.data.load import dataset_errors
from gnws_d2.data.mapper import build_train_mapper
from gnws_d2.errors import DatasetError
from gnws_d2.projects import digits
from gnws_d2.projects.own_data import coco_truth, fit_to_data

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
# Format of Pillow, mode, options of saving.
FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {})),
    *(
        ("JPEG", "L", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ),
    *(("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "I;16", {})),
    *(("PNG", "I;16", {}), ("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "RGBA", {})),
    *(("BMP", "RGB", {}), ("PPM", "RGB", {})),
)


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


def formats(rng: random.Random, folder: Path) -> str:
    """An image in another format, perhaps damaged: it shows the same, or is refused. Only PNG has
    checksums: of the others, a flipped bit may show anything of the same size."""
    file = copy(folder)
    content = json.loads(file.read_text(encoding="utf-8"))
    chosen = rng.choice(content["images"])
    with Image.open(folder / "images" / chosen["file_name"]) as opened:
        image = opened.convert("RGB")
    kind, mode, options = rng.choice(FORMATS)
    converted = sixteen_bits(image) if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    if kind in ("JPEG", "WEBP", "PNG") and rng.random() < 0.3:
        exif[0x0112] = rng.choice((0, 1, 9, 65535))  # none of these turns an image
        options = options | {"exif": exif}
    suffix = rng.choice((kind.lower(), kind.lower(), "png", "JPG", "txt"))
    chosen["file_name"] = f"{rng.choice(('other', 'ärger 図', 'a.b c#%20'))}.{suffix}"
    path = folder / "images" / chosen["file_name"]
    converted.save(path, kind, **options)
    with Image.open(path) as opened:
        opened.seek(0)
        eight = opened.convert("L") if mode != "I;16" else image.convert("L")
        expected = np.asarray(eight, dtype=float)
    damage = rng.choice(("none", "cut", "flip", "empty", "appended"))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[rng.randrange(len(data)) :]
    elif damage == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif damage == "empty":
        data.clear()
    elif damage == "appended":
        data += rng.randbytes(100)
    path.write_bytes(data)
    other = folder / "other.json"
    other.write_text(json.dumps(content), encoding="utf-8")
    try:
        use(other)
        found = read_image(path, "L")[..., 0].astype(float)
    except DatasetError as error:
        if damage in ("none", "appended"):
            raise Wrong(f"{kind} {mode} {options} refused: {error}") from error
        raise
    if found.shape != expected.shape:
        return f"{kind} {mode}, {damage}: of size {found.shape}"
    exact = damage != "flip" or kind == "PNG"
    return (
        f"{kind} {mode}, {damage}: shows something else"
        if exact and differ(found, expected)
        else ""
    )


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Not by the rounding of a conversion."""
    return bool(np.abs(one - other).max() > 3)


def encodings(rng: random.Random, folder: Path) -> str:
    """JSON that says the same in another way, or something that readers disagree on: used as it
    was meant, or refused."""
    file = copy(folder)
    expected = use(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    image = rng.choice(content["images"])
    chosen = rng.choice([a for a in content["annotations"] if a["image_id"] == image["id"]])
    encoding, twice = "utf-8", None
    match rng.randrange(10):
        case 0:
            encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7"))
        case 1:  # the first of two is the right one
            twice = rng.choice(
                (
                    ('"bbox": ', '"bbox": [1, 1, 9, 9], "bbox": '),
                    ('"annotations": ', '"annotations": [], "annotations": '),
                    ('"category_id": ', '"category_id": 3, "category_id": '),
                )
            )
        case 2:
            image = content["images"][-1]  # with another order, the ids would sort otherwise
            number = rng.choice((2**31, 2**63, 2**64, 10**30))
            for entry in content["annotations"]:
                if entry["image_id"] == image["id"]:
                    entry["image_id"] = number
            image["id"] = number
        case 3:
            entry = rng.choice((image, chosen))
            member = rng.choice(sorted(entry.keys() - {"file_name", "segmentation", "bbox"}))
            entry[member] = rng.choice((str(entry[member]), float(entry[member]), 10**400))
        case 4:
            chosen["bbox"] = [str(value) for value in chosen["bbox"]]
        case 5:
            text = json.dumps(content)[:-1]
            depth = rng.choice((10, 500, 100_000))
            file = folder / "deep.json"
            file.write_text(f'{text}, "info": {"[" * depth}null{"]" * depth}}}', encoding="utf-8")
            return "" if same(use(file), expected) else "something else"
        case 6:
            entry = rng.choice((image, chosen, content))
            entry[rng.choice(("info", "attributes", "licenses", "x" * 10_000))] = rng.choice(
                (None, [None], {"a": {"b": [None, {"c": None}]}}, {"": ""}, "\u0000", "\ud800")
            )
        case 7:
            name = rng.choice(("図 ü.png", "a\nb.png", "%s {} $HOME.png", "a" * 200 + ".png"))
            (folder / "images" / image["file_name"]).rename(folder / "images" / name)
            image["file_name"] = name
        case 8:
            path = folder / "images" / image["file_name"]
            image["file_name"] = rng.choice(
                (f"../images/{path.name}", str(path), f"./{path.name}", f"..//images/{path.name}")
            )
        case 9:
            path = folder / "images" / image["file_name"]
            image["file_name"] = rng.choice(
                (
                    "",
                    ".",
                    "..",
                    "\u0000.png",
                    "../mine.json",
                    "/dev/zero",
                    "/proc/self/mem",
                    "\ud800",
                )
            )
    text = json.dumps(content)
    if twice:
        at = text.index(twice[0])
        text = text[:at] + twice[1] + text[at + len(twice[0]) :]
    other = folder / "other.json"
    other.write_bytes(text.encode(encoding))
    found = use(other)
    if twice:
        return f"accepted, with two of {twice[0]}"
    return "" if same(found, expected) else "accepted, but it says something else"


CLASSES: dict[str, tuple[int, Trial]] = {
    "good datasets": (20, good),
    "annotations": (150, annotations),
    "images": (60, images),
    "image formats": (150, formats),
    "annotation files": (60, files),
    "encodings": (100, encodings),
}
