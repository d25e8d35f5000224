"""What users of detectors have reported, in many variants.

A trial writes what it knows itself, and compares what the package makes of it with that, with
pycocotools or with a formula of its own, never with another function of the package.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
import random
import re
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from datasets import write
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from trials import Trial, Wrong, accepted, logged

from gnws.arguments import COMMANDS, parse
from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.config import config_text
from gnws_d2.data import Mapper, load_train_dataset, read_frames
from gnws_d2.engine import build_evaluator, scale_schedule
from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data import data_summary, fit_to_data, schedule_for

PROGRAMS = {name: importlib.import_module(COMMANDS[name][0]) for name in ("eval", "predict")}
SMALL = "Small/mask_rcnn_R_18_FPN_gn_ws.yaml"
WIDTH, HEIGHT = 128, 96
OPTS = (
    *("MODEL.MASK_ON", "False", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
)
# Format of Pillow, modes, options of saving, and how many levels a decoder may differ.
JPEG, AVIF = {"quality": 95, "subsampling": 0}, {"quality": 100, "subsampling": "4:4:4"}
FILES: tuple[tuple[str, tuple[str, ...], dict[str, Any], int], ...] = (
    *(("JPEG", ("RGB", "L"), JPEG, 8), ("MPO", ("RGB",), JPEG, 8)),
    *(("PNG", ("L",), {}, 0), ("WEBP", ("RGB",), {"lossless": True}, 0)),
    *(("TIFF", (m,), {}, 0) for m in ("I;16", "I;16B", "L", "RGB", "F")),
    ("TIFF", ("I;16", "I;16B", "L", "RGB"), {"compression": "tiff_lzw"}, 0),
    *(("GIF", ("RGB",), {"disposal": n}, 0) for n in range(3)),
    *(("PNG", ("RGB",), {"disposal": n, "blend": n % 2}, 0) for n in range(3)),
    *(("PNG", ("RGB",), {"default_image": True}, 0), ("AVIF", ("RGB",), AVIF, 8)),
)
SOLVER = {
    **{"IMS_PER_BATCH": [8], "SCALE_TO_BATCH": [4, 32], "REFERENCE_WORLD_SIZE": [0, 2, 8]},
    **{"ACCUMULATION_STEPS": [2], "BASE_LR": [0.01], "MAX_ITER": [640], "EPOCHS": [10]},
}
ON_DISK = ("im{}.png", "IM {}.PNG", "\u00fcber-{}.png", "sub/im{}.png", "a/b/\u00fc {}.png")
SIDES = (
    *("left_{0}", "{0}_left", "left-{0}", "{0}.left", "left {0}", "my_left_{0}_2", "left{1}"),
    *("Left_{0}", "{1}_Left", "Left{1}", "{1}Left", "{0}Left", "LEFT_{2}", "{2} LEFT"),
    *("l_{0}", "{0}_l", "l-{0}", "{0}.L", "L {0}", "L_{2}", "{1}_L", "l{1}", "{0}L"),
)
OTHER = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "L": "R", "l": "r"}


def scene(
    rng: random.Random, folder: Path, objects: list[int], cell: int = 32, side: int = WIDTH
) -> dict[str, Any]:
    """What a COCO file says of images of ``side`` x 3/4 ``side``, each of one color, with as many
    ``objects``, which do not touch: one in a cell. The images are in ``folder``/images."""
    (folder / "images").mkdir()
    height = side * 3 // 4
    categories = [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}]
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    for index, count in enumerate(objects):
        image = {"id": 5 * index + 2, "file_name": f"{index}.png", "width": side, "height": height}
        color = (index * 20, 250 - index * 20, 0)
        Image.new("RGB", (side, height), color).save(folder / "images" / f"{index}.png")
        content["images"].append(image)
        for place in rng.sample(range(side // cell * (height // cell)), count):
            y, x = (n * cell + rng.random() for n in divmod(place, side // cell))
            w, h = (rng.uniform(0.6, 0.9) * cell for _ in range(2))
            named = {"id": len(content["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0}
            found = {"category_id": rng.choice((3, 7)), "bbox": [x, y, w, h], "area": w * h}
            content["annotations"].append({**named, **found})
    return content


def move(folder: Path, image: dict[str, Any], name: str) -> Path:
    """Give the file of an image of :func:`scene` another name, and return its path."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return (folder / "images" / image["file_name"]).rename(file)


def mask(rng: random.Random, box: list[float], kind: str = "") -> tuple[Any, list[float], float]:
    """A segmentation in ``box``, the box around it, and its area."""
    x, y, w, h = box
    kind = kind or rng.choice(("polygon", "counts", "compressed"))
    if kind == "polygon":
        number = rng.randint(5, 30)
        angles = [2 * math.pi * (i + rng.random()) / number for i in range(number)]
        radii = [(rng.uniform(0.3, 1), angle) for angle in angles]  # of a star
        xs = np.array([x + w / 2 * (1 + r * math.cos(angle)) for r, angle in radii])
        ys = np.array([y + h / 2 * (1 + r * math.sin(angle)) for r, angle in radii])
        around = [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)]
        area = abs(xs @ np.roll(ys, 1) - ys @ np.roll(xs, 1)) / 2
        return [np.stack([xs, ys], 1).ravel().tolist()], list(map(float, around)), float(area)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x) / w * 2 - 1) ** 2 + ((rows - y) / h * 2 - 1) ** 2 <= 1
    inside &= rows % 8 < rng.choice((4, 8))  # stripes
    flat = inside.ravel(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1), len(flat)]
    counts: Any = [0] * bool(flat[0]) + np.diff(ends).tolist()
    if kind == "compressed":
        counts = rle.encode(np.asfortranarray(inside, np.uint8))["counts"].decode()
    (top, bottom), (left, right) = (np.flatnonzero(inside.any(a))[[0, -1]] for a in (1, 0))
    around = list(map(float, (left, top, right + 1 - left, bottom + 1 - top)))
    return {"size": [HEIGHT, WIDTH], "counts": counts}, around, float(inside.sum())


def fit(file: object, opts: str = "", config: str = SMALL, test: object = None) -> CfgNode:
    """The config that ``gnws train`` fits to a file. ``opts`` are pairs, separated by spaces."""
    names = ["DATASETS.TRAIN", f"('{file}',)", "DATASETS.TEST", f"('{test or file}',)"]
    return fit_to_data(load_config(config, [*OPTS, *names, *opts.split()]))


def warned(records: list[logging.LogRecord], pattern: str) -> bool:
    """Whether a warning says it."""
    found = (r.getMessage() for r in records if r.levelno >= logging.WARNING)
    return any(re.search(pattern, text, re.IGNORECASE) for text in found)


def crowds(rng: random.Random, folder: Path) -> str:
    """Some or all annotations of one or two files are crowds: they are no objects, and without
    objects it is refused."""
    share, masks, parts = rng.choice((0, 0.5, 0.8, 1)), rng.random() < 0.5, rng.choice((1, 2))
    content = scene(rng, folder, [rng.randrange(4) for _ in range(rng.randint(parts, 6))])
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(rng.random() < share)
        if masks or (annotation["iscrowd"] and rng.random() < 0.7):
            annotation["segmentation"], annotation["bbox"], _ = mask(rng, annotation["bbox"])
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    crowd = len(content["annotations"]) - len(objects)
    for annotation in rng.sample(objects, len(objects) // 3):
        del annotation["iscrowd"]
    files = [str(folder / f"{part}.json") for part in range(parts)]
    for part, file in enumerate(files):
        images = content["images"][part::parts]
        of = [a for a in content["annotations"] if a["image_id"] in [i["id"] for i in images]]
        Path(file).write_text(json.dumps({**content, "images": images, "annotations": of}))
    opts = f"MODEL.MASK_ON {masks} DATALOADER.FILTER_EMPTY_ANNOTATIONS {rng.random() < 0.5}"
    opts += f" DATALOADER.FILTER {rng.choice(('mmdetection', 'detectron2'))}"
    with accepted(bool(objects)), logged() as records:
        cfg = fit("','".join(files), opts, test=files[0])
        mapper, summaries = Mapper(cfg), [data_summary(file, cfg) for file in files]
        counts = [sum(len(mapper(record)["instances"]) for record in load_train_dataset(cfg))]
        counts += [sum(s["boxes"] for s in summaries), sum(s["crowds"] for s in summaries)]
        said = [m for r in records for m in re.findall(r"(\d+) objects", r.getMessage())]
        is_right = counts == [len(objects)] * 2 + [crowd] and {*said} <= {str(len(objects))}
        return "" if is_right else f"{counts}, said {said}, for {len(objects)} objects"


def pixels(rng: random.Random, highest: int, size: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).integers(0, highest + 1, size)


def drawn(rng: random.Random, mode: str, width: int, height: int) -> tuple[Image.Image, np.ndarray]:
    """An image of blocks, and the levels that it shows: (H, W, 3) uint8."""
    types = {"I;16": "<u2", "I;16B": ">u2", "F": "<f4"}
    size = (height // 8, width // 8, *([3] * (mode == "RGB")))
    blocks = pixels(rng, 65535 if mode in types else 255, size)
    values = blocks.repeat(8, 0).repeat(8, 1)
    shown = (values + 128) // 257 if mode in types else values
    shown = shown if mode == "RGB" else np.stack([shown] * 3, -1)
    return Image.fromarray(values.astype(types.get(mode, "u1"))), shown


def turned(levels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, as EXIF defines its tag 274."""
    levels = levels.swapaxes(0, 1) if orientation >= 5 else levels
    levels = levels[:, ::-1] if orientation in (2, 3, 6, 7) else levels
    return levels[::-1] if orientation in (3, 4, 7, 8) else levels


def frames(rng: random.Random, folder: Path) -> str:
    """Pages, frames or a second image in a file, perhaps turned: what was written is shown."""
    kind, modes, options, tolerance = rng.choice(FILES)
    # GIF has no EXIF, and Pillow crashes where it writes frames that are turned as AVIF.
    orientation = 1 if kind in ("GIF", "AVIF") else rng.randint(1, 8)
    size = rng.choice(((64, 48), (48, 64)))
    pages, expected = [], []
    for number in range(1 if kind == "JPEG" else rng.randint(1, 4)):
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
    with accepted("F" not in modes):
        found = list(read_frames(file, "RGB"))
    numbers = [None] if len(expected) == 1 else list(range(len(expected)))
    if [number for number, _ in found] != numbers:
        return f"{kind}: {len(found)} frames of {len(expected)}"
    for (number, levels), shown in zip(found, expected, strict=True):
        if levels.shape != shown.shape or np.abs(levels - shown).max() > tolerance:
            return f"{kind} {modes}, orientation {orientation}: frame {number} shows others"
    return ""


def depths(rng: random.Random, folder: Path) -> str:
    """16-bit grays of any range: training and prediction see the same, of a low one they warn."""
    content = scene(rng, folder, [1] * rng.randint(1, 4))
    highest = round(2 ** rng.uniform(8, 16)) - 1
    levels = {}
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.{rng.choice(('png', 'tif', 'pgm', 'jp2'))}"
        gray = pixels(rng, highest, (HEIGHT, WIDTH))
        gray[0, 0] = highest
        kind = rng.choice(("<u2", ">u2")) if image["file_name"].endswith("tif") else "<u2"
        Image.fromarray(gray.astype(kind)).save(folder / "images" / image["file_name"])
        levels[image["id"]] = (gray + 128) // 257
    with logged() as records:
        cfg = fit(write(folder, content), opts="INPUT.RANDOM_FLIP none")
        mapper = Mapper(cfg)
        for record in load_train_dataset(cfg):
            ((_, predicted),) = read_frames(record["file_name"], "BGR")
            for image in (mapper(record)["image"].permute(1, 2, 0).numpy(), predicted):
                if not np.array_equal(image, np.stack([levels[record["image_id"]]] * 3, -1)):
                    return f"levels up to {image.max()} for {highest} of 65535"
    is_warned = warned(records, "16 bits")
    return "" if is_warned == (highest < 4096) else f"warned of {highest}: {is_warned}"


def png(values: np.ndarray, bits: int, color: int) -> bytes:
    """A PNG, made as its specification says; ``color`` 0 is gray, 2 RGB, 3 a palette."""
    height, width = values.shape
    each = values.astype(">u2" if bits == 16 else "u1")[..., None].repeat(3 if color == 2 else 1, 2)
    stored = np.unpackbits(each.view(np.uint8).reshape(height, -1, 1), axis=2)
    rows = np.packbits(stored[..., max(0, 8 - bits) :].reshape(height, -1), axis=1)
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    palette = bytes(3 << bits if color == 3 else 0)  # all black
    data = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())
    chunks = [b"IHDR" + head, *[b"PLTE" + palette] * bool(palette), b"IDAT" + data, b"IEND"]
    ends = ((struct.pack(">I", len(c) - 4), c, struct.pack(">I", zlib.crc32(c))) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(b"".join(parts) for parts in ends)


def labels(rng: random.Random, folder: Path) -> str:
    """Label images of all depths: classes stay what and where they are."""
    color, bits = rng.choice([(0, n) for n in (1, 2, 4, 8, 16)] + [(3, n) for n in (1, 2, 4, 8)])
    color = rng.choice((0, 2)) if (color, bits) == (0, 8) else color
    known = rng.sample(range(1 << bits), min(1 << bits, rng.randint(2, 12)))
    index = pixels(rng, len(known) - 1, (6, 8)).repeat(16, 0).repeat(16, 1)
    values = np.array(known)[index]
    (folder / "labels.png").write_bytes(png(values, bits, color))
    Image.fromarray((index * 20).astype(np.uint8)).save(folder / "image.png")  # shows its labels
    side, crop = rng.choice((HEIGHT, HEIGHT, 61, 150)), rng.random() < 0.2
    flip, mode = rng.choice(("none", "horizontal", "vertical")), rng.choice(("pil", "cv2"))
    opts = f"INPUT.MIN_SIZE_TRAIN ({side},) INPUT.RANDOM_FLIP {flip} INPUT.RESIZE_TRAIN {mode}"
    opts += f" INPUT.CROP.ENABLED {crop}"
    cfg = load_config("Digits/semantic_R_18_FPN_gn_ws.yaml", opts.split())
    record = {"file_name": f"{folder}/image.png", "sem_seg_file_name": f"{folder}/labels.png"}
    mapped = Mapper(cfg)({**record, "width": WIDTH, "height": HEIGHT})
    found, levels = mapped["sem_seg"].numpy(), mapped["image"][0].numpy()
    if others := sorted({*found.flat} - {*known}):
        return f"{bits} bits, color {color}: {others[:5]} of {known}"
    is_moved = side == HEIGHT and not crop and (np.array(known)[levels // 20] != found).any()
    return f"{bits} bits, color {color}: labels beside their image" if is_moved else ""


def keypoints(rng: random.Random, folder: Path) -> str:
    """Names with sides in any spelling: flipped, left becomes right; without sides it is said."""
    side = rng.choice(SIDES) if rng.random() < 0.8 else ""
    word = next((word for word in OTHER if word in side), "")
    parts = rng.sample(("eye", "ear", "wrist", "heel", "shoulder"), rng.randint(1, 4))
    left, right = (
        [text.format(part, part.title(), part.upper()) for part in parts if side]
        for text in (side, side.replace(word, OTHER.get(word, "")))
    )
    alone = ("nose", "cleft", "leftover", "bright", "tail_2", "kp_17", "upper lip")
    names = [*left, *right, *rng.sample(alone, rng.randint(0 if side else 1, 4))]
    rng.shuffle(names)
    partner = dict(zip((*left, *right), (*right, *left), strict=True))
    content = scene(rng, folder, [1])
    black = Image.new("L", (WIDTH, HEIGHT))
    black.putpixel((0, 0), 255)  # shows whether it is flipped
    black.save(folder / "images" / "0.png")
    points = {n: (rng.randrange(WIDTH) + 0.5, rng.randrange(HEIGHT) + 0.5) for n in names}
    flat = [v for name in names for v in (points[name][0] - 0.5, points[name][1] - 0.5, 2)]
    content["annotations"][0].update(keypoints=flat, num_keypoints=len(names))
    for category in content["categories"]:
        category.update(keypoints=names, skeleton=[])
    config, flip = "Digits/keypoint_rcnn_R_18_FPN_gn_ws.yaml", "INPUT.RANDOM_FLIP horizontal"
    with logged() as records:
        cfg = fit(write(folder, content), flip, config)
        mapper, (record,) = Mapper(cfg), load_train_dataset(cfg)
        mapped = next(m for m in iter(lambda: mapper(record), None) if not m["image"][0, 0, 0])
    found = mapped["instances"].gt_keypoints.tensor[0, :, :2].tolist()
    expected = [(WIDTH - x, y) for x, y in (points[partner.get(name, name)] for name in names)]
    if not np.allclose(found, expected, atol=0.01):
        return f"left and right of {names} are not exchanged, or others are"
    is_said = side or len(names) == 1 or warned(records, "flip")
    return "" if is_said else f"no warning for {names}"


def score(evaluator: DatasetEvaluator, name: str, content: dict[str, Any], limit: int) -> float:
    """The box AP of a model that finds all that ``content`` says, or ``limit`` objects of an image,
    on a dataset that is, or is a part of, this content."""
    classes = {c: index for index, c in enumerate(MetadataCatalog.get(name).thing_classes)}
    index = {c["id"]: classes.get(c["name"], 0) for c in content["categories"]}
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        number = ids[Path(record["file_name"]).name]
        objects = [a for a in content["annotations"] if a["image_id"] == number][:limit]
        boxes = torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((record["height"], record["width"]), pred_boxes=Boxes(boxes))
        instances.scores = torch.rand(len(objects))
        instances.pred_classes = torch.tensor([index[a["category_id"]] for a in objects], dtype=int)
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP"]


def many(rng: random.Random, folder: Path) -> str:
    """Up to 300 objects in an image: a model that finds all has AP 100. Of more objects than it may
    find is warned."""
    counts = [rng.randint(1, 300) for _ in range(rng.randint(1, 2))]
    content = scene(rng, folder, counts, 16, 320)
    name, limit = str(write(folder, content)), rng.choice((100, 150, 300, 400))
    with logged() as records:
        cfg = fit(name, f"TEST.DETECTIONS_PER_IMAGE {limit}")
        found = score(build_evaluator(cfg, name, str(folder)), name, content, limit)
    is_right = found > 99.9 if max(counts) <= limit else warned(records, rf"\b{limit}\b")
    return "" if is_right else f"AP {found:.1f} with a limit of {limit}, unsaid"


def truth(rng: random.Random, folder: Path) -> str:
    """Detectron2's own evaluator of a file or a part of it: a model that finds all has AP 100, also
    by the ids of the user's own file."""
    content = scene(rng, folder, [rng.randint(1, 3) for _ in range(rng.randint(5, 12))])
    first, ids = rng.choice((0, 1, 10**12)), rng.sample(range(200), 3)
    numbers = {2 + 5 * n: rng.randrange(10**6) * 12 + n for n in range(12)}
    for image in content["images"]:
        image["id"] = numbers[image["id"]]
    for category in content["categories"]:
        category["id"] = ids[category["id"] % 3]
    for number, entry in enumerate(content["annotations"]):
        entry.update(id=first + number, image_id=numbers[entry["image_id"]])
        entry["category_id"] = ids[entry["category_id"] % 3]
    if rng.random() < 0.5:
        content["categories"].insert(rng.randrange(3), {"id": ids[2], "name": "unused"})
    file = write(folder, content)
    fit(f"{file}#train", f"DATASETS.FINAL_TEST ('{file}',)", test=f"{file}#val")
    name = f"{file}{rng.choice(('#train', '#val', ''))}"
    evaluator = COCOEvaluator(name, ("bbox",), False, output_dir=str(folder / "out"))
    found = score(evaluator, name, content, 1000)
    own = COCO()
    counted = [{**a, "id": 1 + n} for n, a in enumerate(content["annotations"])]
    own.dataset = {**content, "annotations": counted}
    own.createIndex()
    results = json.loads((folder / "out" / "coco_instances_results.json").read_text())
    judge = COCOeval(own, own.loadRes(results), "bbox")
    judge.params.imgIds = sorted({result["image_id"] for result in results})
    for step in (judge.evaluate, judge.accumulate, judge.summarize):
        step()
    by_user = 100 * judge.stats[0]
    is_right = min(found, by_user) > 99.9
    return "" if is_right else f"{name[-6:]}: AP {found:.1f}, {by_user:.1f} by the user's ids"


def areas(rng: random.Random, folder: Path) -> str:
    """No area beside masks: it is that of the mask, for each way to the truth."""
    content = scene(rng, folder, [rng.randint(1, 4) for _ in range(2)])
    expected = {}
    for annotation in content["annotations"]:
        found, box, area = mask(rng, annotation["bbox"])
        del annotation["area"]
        annotation.update(segmentation=found, bbox=box, iscrowd=int(rng.random() < 0.2))
        made = rle.frPyObjects(found, HEIGHT, WIDTH) if isinstance(found, list) else None
        pixels = float(rle.area(rle.merge(made))) if made else area
        expected[tuple(box)] = sorted((area, pixels))
    content["annotations"][0]["iscrowd"] = 0
    name = file = str(write(folder, content))
    cfg = fit(file, "MODEL.MASK_ON True")
    if rng.random() < 0.4:
        name = "registered"
        register_coco_instances(name, {}, file, str(folder / "images"))
    for annotation in build_evaluator(cfg, name, str(folder))._coco_api.anns.values():
        least, most = expected[tuple(annotation["bbox"])]
        if not 0.99 * least <= annotation["area"] <= 1.01 * most:
            return f"{name[-10:]}: area {annotation['area']:.0f} of a mask of {least:.0f}"
    return ""


def splits(rng: random.Random, folder: Path) -> str:
    """A few images, of which few have objects, and copies: both parts have objects wherever that is
    possible, and the refusal says what to do."""
    share = rng.choice((0.1, 0.3, 1))
    objects = [int(rng.random() < share) * rng.randint(1, 3) for _ in range(rng.randint(1, 12))]
    content = scene(rng, folder, objects)
    originals, with_objects = {}, {a["image_id"] for a in content["annotations"]}
    for image in content["images"]:
        original = f"{rng.randrange(10**6 if rng.random() < 0.6 else 4)}_jpg"
        name = f"{original}.rf.{rng.getrandbits(64):x}.png"
        move(folder, image, f"images/{name}")
        image["file_name"], originals[name] = name, original
    used = {originals[i["file_name"]] for i in content["images"] if i["id"] in with_objects}
    parts: list[list[list[str]]] = []
    is_possible = None if len(used) == 1 else len(used) > 1
    with accepted(is_possible, "--val" if used else ""), logged() as records:
        for _ in range(2):
            file = write(folder, content)
            fit(f"{file}#train", test=f"{file}#val")
            both = [DatasetCatalog.get(f"{file}#{part}") for part in ("train", "val")]
            parts.append([sorted(Path(r["file_name"]).name for r in part) for part in both])
            is_said = not is_possible and warned(records, "--val")
            if not is_said and not all(any(r["annotations"] for r in part) for part in both):
                return f"a part without objects, of {len(used)} images with some"
            rng.shuffle(content["images"])
    train, val = parts[0]
    if parts[0] != parts[1] or sorted(train + val) != sorted(originals):
        return "the split depends on the order, or loses images"
    shared = {originals[name] for name in train} & {originals[name] for name in val}
    return f"copies of {shared} in both parts" if shared else ""


def names(rng: random.Random, folder: Path) -> str:
    """Names that are others than on the disk, beside similar ones: the image that is meant is used,
    or the refusal names the file."""
    content = scene(rng, folder, [1] * rng.randint(1, 5))
    way, is_exact = rng.randrange(7), True
    for number, image in enumerate(content["images"]):
        name = rng.choice(ON_DISK).format(number)
        move(folder, image, f"images/{name}")
        image["file_name"] = (
            name,
            f"images/{name}".replace("/", "\\"),
            rng.choice((name.swapcase(), name.lower(), name.upper())),
            quote(name),
            unicodedata.normalize("NFD", name),
            f"{rng.choice(('images/', './', 'data/set/images/'))}{name}",
            f"{rng.choice(('/home/me/images/', 'C:/me/images/', 'file:///x/images/'))}{name}",
        )[way if rng.random() < 0.8 else 0]
        is_exact &= image["file_name"] in (name, f"./{name}")
        near = (name.lower(), name.swapcase(), Path(name).name, quote(name), f"data/{name}")
        for other in rng.sample(near, rng.choice((0, 0, 1, 2))):
            path = folder / "images" / other
            if other != image["file_name"] and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (WIDTH, HEIGHT), (0, 0, 255)).save(path, "PNG")
    listed = [re.split(r"[/\\]", image["file_name"])[-1] for image in content["images"]]
    try:
        with accepted(True if is_exact else None):
            cfg = fit(write(folder, content))
            for record in load_train_dataset(cfg):
                shown = Mapper(cfg)(record)["image"][:, 0, 0].tolist()
                index = record["image_id"] // 5
                if shown != [index * 20, 250 - index * 20, 0]:
                    return f"way {way}: another image is used"
    except DatasetError as error:
        if not any(name in str(error) or repr(name)[1:-1] in str(error) for name in listed):
            raise Wrong(f"refused without a name: {error}") from error
        raise
    return ""


def schedules(rng: random.Random, folder: Path) -> str:
    """Any combination of the keys of a schedule on own data: the learning rate of an image, and the
    images seen, are as docs/own-data.md and docs/small-gpus.md say."""
    images, processes = rng.choice((20, 205, 1000, 5000)), rng.choice((1, 2, 4))
    given: dict[str, Any] = {k: rng.choice(v) for k, v in SOLVER.items() if rng.random() < 0.4}
    opts = [word for key, value in given.items() for word in (f"SOLVER.{key}", str(value))]
    weights, factor = rng.choice((("", 3), ("ImageNet/x.pkl", 2), ("mine.pth", 1)))
    file = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"  # 0.02 for 8 processes of 2 images
    opts += ["MODEL.WEIGHTS", weights, "DATASETS.TRAIN", "('mine.json',)"]
    with accepted(not {"MAX_ITER", "EPOCHS"} <= set(given), "SOLVER.EPOCHS"):
        cfg = load_config(file, opts)
        cfg = schedule_for(cfg, images, processes, set(opts[::2]), load_config(file))
        found = scale_schedule(cfg, processes).SOLVER
    written, reference = given.get("IMS_PER_BATCH", 16), given.get("REFERENCE_WORLD_SIZE")
    is_scaled = "SCALE_TO_BATCH" in given or reference is not None
    batch = written if {"IMS_PER_BATCH", "ACCUMULATION_STEPS"} & set(given) else 2 * processes
    if is_scaled:
        is_whole = not reference or "ACCUMULATION_STEPS" in given
        scaled = written if is_whole else written * processes // reference
        batch = given.get("SCALE_TO_BATCH", scaled)
    rate = 0.02 / (written if reference == 0 else 16)  # of an image
    if "BASE_LR" in given:
        rate = 0.01 / (written if is_scaled else batch)
    epochs = min(max(round(factor * 24_000 / images), factor * 12), factor * 60)
    seen = images * given.get("EPOCHS", epochs)
    if "MAX_ITER" in given:
        seen = 640 * (written if is_scaled else batch)
    actual = found.IMS_PER_BATCH, found.BASE_LR / found.IMS_PER_BATCH, found.MAX_ITER * batch
    is_right = actual[0] == batch and math.isclose(actual[1], rate, rel_tol=1e-6)
    if is_right and abs(actual[2] - seen) < batch:
        return ""
    return f"{given}, {processes} processes: {actual} instead of {(batch, rate, seen)}"


def command(*words: str) -> None:
    """Run a command of ``gnws`` in this process."""
    os.environ["GNWS_D2_DEBUG"] = "1"  # an error is raised and not printed
    if code := PROGRAMS[words[0]].main(parse("", words)):
        raise Wrong(f"gnws {words[0]} ended with code {code}")


def trained(folder: Path, content: dict[str, Any]) -> Path:
    """The weights in the folder of a run, as a training leaves it."""
    file, run = write(folder, content), folder / "run"
    cfg = fit(file, f"OUTPUT_DIR {run} DATASETS.FINAL_TEST ('{file}',)")
    for name in ("report/report.html", "inference/coco_instances_results.json", "config.yaml"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(config_text(cfg) if name == "config.yaml" else "[]")
    Checkpointer(build_model(cfg), str(run), cfg=cfg).save("model_final")
    return run / "model_final.pth"


def image_ids(rng: random.Random, folder: Path) -> str:
    """gnws predict --image-ids, cameras with the same names: the ids are those of the file."""
    content = scene(rng, folder, [1, 1, 1])
    weights, expected = trained(folder, content), {}
    way, wide = rng.randrange(6), rng.choice((1, 1, 10**12))
    is_text, is_ambiguous = rng.random() < 0.3, rng.random() < 0.5
    for number, image in enumerate(content["images"]):
        day = rng.choice(("", "day1/")) if way != 1 else ""
        base = f"{number // 2 if is_ambiguous else number:04d}.png"
        name = f"{day}cam{'AB'[number % 2]}/{base}"
        file = move(folder, image, f"photos/{name}")
        image["id"] = f"{number + 1:04d}" if is_text else (7 - number) * wide
        ways = (name, base, f"./{name}", name.replace("/", "\\"), f"data/{name}", f"/x/{name}")
        image["file_name"], expected[str(file)] = ways[way], image["id"]
    if rng.random() < 0.3:
        content["images"].append({**image, "file_name": "0000.png", "id": "x" if is_text else 99})
    rng.shuffle(content["images"])
    (folder / "ids.json").write_text(json.dumps(content))
    os.chdir(folder)
    words = ("--weights", str(weights), "--output", "out", "--image-ids", "ids.json", "--input")
    with accepted(True if way in (0, 2) else None):
        command("predict", *words, *expected)
    found = json.loads((folder / "out" / "detections.json").read_text())["images"]
    wrong = [i["id"] for i in found if i["id"] != expected[i["file_name"]]]
    return f"way {way}: {wrong} of {expected}" if wrong or len(found) != len(expected) else ""


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def beside(rng: random.Random, folder: Path) -> str:
    """gnws eval beside a run, from any folder: the run keeps its files, and there are results."""
    content = scene(rng, folder, [1, 2])
    weights = trained(folder, content)
    run, elsewhere = weights.parent, folder / "elsewhere"
    elsewhere.mkdir()
    (folder / "mine.json").write_text(json.dumps(content))
    before = digests(run)
    words = ["eval", "--weights", str(weights)]
    if rng.random() < 0.7:
        words += ["--test", str(folder / "mine.json")]
    if rng.random() < 0.3:
        words += ["--config-file", str(run / "config.yaml")]
    if is_named := rng.random() < 0.3:
        words += ["OUTPUT_DIR", "named"]
    os.chdir(elsewhere)
    command(*words)
    after, made = digests(run), digests(elsewhere)
    if changed := [file for file in before if after.get(file) != before[file]]:
        return f"changed: {changed}"
    tops = {file.partition("/")[0] for file in before}
    if added := [f for f in after.keys() - before if "/" not in f or f.partition("/")[0] in tops]:
        return f"added: {added[:5]}"
    if any(not (is_named and file.startswith("named/")) for file in made):
        return f"in the current folder: {sorted(made)[:5]}"
    new = [*(after.keys() - before), *made]
    return "" if any(f.endswith("coco_instances_results.json") for f in new) else "no results"


CLASSES: dict[str, tuple[int, Trial]] = {
    "crowds": (100, crowds),
    "images in one file": (150, frames),
    "bit depths": (60, depths),
    "label images": (120, labels),
    "keypoint names": (120, keypoints),
    "many objects": (40, many),
    "image ids": (20, image_ids),
    "names on disk": (120, names),
    "splits": (100, splits),
    "areas": (80, areas),
    "truth of parts": (60, truth),
    "schedules": (300, schedules),
    "evaluations beside a run": (6, beside),
}
