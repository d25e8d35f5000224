"""COCO datasets of one's own that are damaged: annotations, images, and the file as a whole."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from scenes import HEIGHT, WIDTH, fit, picture, scene, write
from trials import Wrong, accepted, damage, trials

from gnws_d2.data import Mapper, NamingMapper, load_train_dataset, read_image

NAN, INF = float("nan"), float("inf")
# What Detectron2 does not train on, in silence.
DROPPED = {"bbox": ([1, 1, 0, 5], [1, 1, 5, 0])}
DROPPED["segmentation"] = ([[]], [[1, 1, 5, 5]], [[1, 1, 5, 5, 9]])
SIZE = {"size": [HEIGHT, WIDTH]}
MEMBERS: dict[str, tuple[Any, ...]] = {
    "bbox": (
        *([NAN, 1, 5, 5], [1, 1, INF, 5], [9, 9, -4, 5], [-90, 1, 5, 5], [500, 1, 5, 5], None, []),
        *([0.1, 0.1, 0.2, 0.2], [1, 1, 500, 5], [1e30, 1, 5, 5], [1, 2, 3], [1, 1, 5, 5, 5]),
        *("1 2 3 4", [[1, 2], [3, 4]], [1, 1, "5", 5], {"x": 1}, [True, 1, 5, 5]),
    ),
    "segmentation": (
        *([[NAN, 1, 5, 5, 9, 1]], [[1e30, 1, 5, 5, 9, 1]], "x", 5, [1, 2, 3], [[None] * 6], {}),
        *([[500, 500, 510, 500, 510, 510]], [["a", 1, 2, 3, 4, 5]], {"counts": []}, SIZE),
        *({"counts": n, **SIZE} for n in ("", [10**12], [-1, WIDTH * HEIGHT + 1], None, "\0\xff")),
        *({"counts": "P" * 10**5, **SIZE}, {"counts": [3, 2], "size": [5, 5]}, {"counts": "x"}),
        *({"counts": "1", "size": [10**9, 10**9]}, {"counts": [1], "size": "160"}),
    ),
    "iscrowd": ("1", None, 2, -1, [], NAN),
    "category_id": (None, 999, "1", -1, 0.5, [], NAN),
    "image_id": (None, 10**7, "x", -1, 0.5, []),
    "id": (None, "x", 0.5, [], NAN),
    "area": (NAN, -1, "x", []),
}


def use(file: Path) -> list[dict[str, Any]]:
    """All that training and evaluation do with it; the mapped records."""
    cfg = fit(file, "MODEL.MASK_ON True INPUT.RANDOM_FLIP none INPUT.MIN_SIZE_TRAIN (80,)")
    mapper = NamingMapper(Mapper(cfg, is_train=True))
    mapped = [mapper(record) for record in load_train_dataset(cfg)]
    COCO(MetadataCatalog.get(str(file)).json_file)  # as an evaluator does
    for record in mapped:
        found = record["instances"]
        boxes, (height, width) = found.gt_boxes.tensor.numpy(), found.image_size
        if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
            raise Wrong(f"a box that is none: {boxes.tolist()}"[:200])
        if boxes.min(initial=0) < 0 or (boxes > [width, height] * 2).any():
            raise Wrong("a box outside of its image")
        # By name: a category without annotations is no class, and the next one has its index.
        record["classes"] = [cfg.DATASETS.CLASSES[index] for index in found.gt_classes]
    return mapped


def compare(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    shown = [
        [(r["image"].tolist(), r["instances"].gt_boxes.tensor.tolist()) for r in records]
        + [r["classes"] for r in records]
        for records in (one, other)
    ]
    return "" if shown[0] == shown[1] else "accepted, but it shows something else"


@trials(150, "annotations")
def annotations(rng: random.Random, folder: Path) -> str:
    """One member of one annotation, in every way that is wrong: it has to be refused, or dropped
    where Detectron2 drops it."""
    content = scene(rng, folder, [2, 3, 2])
    found = content["annotations"]
    chosen = found.pop(rng.randrange(len(found)))
    without = use(write(folder, content)) if (is_dropped := rng.random() < 0.1) else []
    values = DROPPED if is_dropped else {**MEMBERS, "id": (*MEMBERS["id"], found[0]["id"])}
    member = rng.choice(sorted(values))
    chosen[member] = rng.choice(values[member])
    if not is_dropped and member != "iscrowd" and member != "area" and rng.random() < 0.2:
        del chosen[member]
    found.append(chosen)
    with accepted(is_dropped or None):
        mapped = use(write(folder, content))
    return compare(mapped, without) if is_dropped else f"accepted: {chosen}"[:300]


@trials(60, "images")
def images(rng: random.Random, folder: Path) -> str:
    """An image that is damaged, gone or of another size: refused, unless it shows the same."""
    content = scene(rng, folder, [2, 3, 2])
    expected = use(write(folder, content))
    image, (one, two) = rng.choice([*folder.glob("images/*")]), rng.sample(content["images"], 2)
    member, side = rng.choice(("id", "file_name")), rng.choice(("width", "height"))
    others = (lambda: None, image.mkdir, lambda: os.mkfifo(image))
    changes: tuple[Callable[[], Any], ...] = (
        *[lambda: image.write_bytes(damage(rng, image.read_bytes()))] * 2,
        lambda: image.write_bytes(rng.choice((b"", b"x", b"<html>", rng.randbytes(1000)))),
        lambda: (image.rename(folder / "gone"), rng.choice(others)()),
        lambda: one.update({side: rng.choice((1, 0, -5, 100, NAN, "x", None))}),
        lambda: one.update({member: rng.choice((two[member], None, "/dev/null", "../x", 0.5, []))}),
    )
    rng.choice(changes)()
    return compare(use(write(folder, content)), expected)


@trials(60, "annotation files")
def files(rng: random.Random, folder: Path) -> str:
    """Bytes of the annotation file changed, removed or repeated: refused, or used as it says."""
    file = write(folder, scene(rng, folder, [2, 3, 2]))
    inserted = (b"NaN", b"null", b"{", b"[" * 5000, b"9" * 5000, b"\xff")
    content = damage(rng, file.read_bytes(), inserted)
    file.write_bytes(content)
    found = sum(len(record["instances"]) for record in use(file))
    count = sum(not a.get("iscrowd") for a in json.loads(content)["annotations"])
    return "" if found <= count else f"{found} objects, the file has {count}"


@trials(150, "image formats")
def formats(rng: random.Random, folder: Path) -> str:
    """An image in another format, perhaps damaged: it shows the same, or is refused. Only PNG has
    checksums: damage to the others may show anything of the same size."""
    content = scene(rng, folder, [2, 3, 2])
    chosen = rng.choice(content["images"])
    made, what, (expected,), tolerance = picture(rng, folder, (WIDTH, HEIGHT), 1)
    suffix = rng.choice((made.suffix, made.suffix, ".png", ".JPG", ".txt"))
    chosen["file_name"] = f"{rng.choice(('other', 'ärger 図', 'a.b c#%20'))}{suffix}"
    path = made.rename(folder / "images" / chosen["file_name"])
    data = path.read_bytes()
    states = {"whole": data, "with more behind it": data + rng.randbytes(100)}
    states |= {"cut off": data[: rng.randrange(len(data))], "damaged": damage(rng, data)}
    state = rng.choice(list(states))
    path.write_bytes(states[state])
    with accepted(" F," not in what and (state.startswith("w") or None)):
        use(write(folder, content))
        found = read_image(path, "RGB").astype(float)
    may_differ = state == "damaged" and not what.startswith("PNG")
    is_right = found.shape == expected.shape
    is_right &= may_differ or bool(np.allclose(found, expected, rtol=0, atol=tolerance))
    return "" if is_right else f"{what}, {state}: shows something else, of size {found.shape}"


@trials(100, "encodings")
def encodings(rng: random.Random, folder: Path) -> str:
    """JSON that says the same in another way, or something that readers disagree on: used as it was
    meant, or refused."""
    content = scene(rng, folder, [2, 3, 2])
    expected = use(write(folder, content))
    image, chosen = rng.choice(content["images"]), rng.choice(content["annotations"])
    entry = rng.choice((image, chosen))
    encoding, old, new = "utf-8", "", ""
    match rng.randrange(6):
        case 0:
            encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7"))
        case 1:  # of two members of one name, the last is wrong
            where, member = rng.choice(((chosen, "bbox"), (content, "annotations")))
            where["again"] = [1, 1, 9, 9] if where is chosen else []
            old, new = '"again"', f'"{member}"'
        case 2:  # numbers in a form that no reader has to take
            member = rng.choice([m for m in entry if isinstance(entry[m], int)])
            number = entry[member]
            entry[member] = rng.choice((str(number), float(number), 2**63, 2**64, 10**400))
        case 3:
            depth = rng.choice((10, 500, 100_000))
            old, new = "{", f'{{"info": {"[" * depth}null{"]" * depth}, '
        case 4:
            others = (None, [None], {"a": {"b": [None, {"c": None}]}}, {"": ""}, "\u0000", "\ud800")
            name = rng.choice(("info", "attributes", "licenses", "x" * 10_000))
            rng.choice((entry, content))[name] = rng.choice(others)
        case 5:
            path = folder / "images" / image["file_name"]
            right = (f"../images/{path.name}", str(path), f"./{path.name}")
            wrong = ("", ".", "\0.png", "../mine.json", "/dev/zero", "/proc/self/mem", "\ud800")
            image["file_name"] = rng.choice(rng.choice((right, wrong)))
    file = folder / "mine.json"
    file.write_bytes(json.dumps(content).replace(old, new, 1).encode(encoding))
    return compare(use(file), expected)
