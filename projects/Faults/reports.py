"""What users of detectors have reported, in many variants.

A trial writes what it knows itself, and compares what the package makes of it with that, with
OpenCV, with pycocotools or with a formula of its own, never with another function of the package.
"""

import importlib
import json
import logging
import os
import random
import re
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import HEIGHT, WIDTH, fit, integers, move, picture, scene, write
from trials import Wrong, accepted, logged, trials

from gnws.arguments import COMMANDS, parse
from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.config import config_text
from gnws_d2.data import Mapper, load_train_dataset, read_frames
from gnws_d2.engine import build_evaluator
from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data import data_summary

ON_DISK = (
    *("im{}.png", "IM {}.PNG", "\u00fcber-{}.png", "sub/im{}.png", "a/b/\u00fc {}.png"),
    *("\u56f3 {}.png", "a\nb{}.png", "%s {} $HOME.png", "a" * 190 + "{}.png"),
)
SIDES = (
    *("left_{0}", "{0}_left", "left-{0}", "{0}.left", "left {0}", "my_left_{0}_2", "left{1}"),
    *("Left_{0}", "{1}_Left", "Left{1}", "{1}Left", "{0}Left", "LEFT_{2}", "{2} LEFT"),
    *("l_{0}", "{0}_l", "l-{0}", "{0}.L", "L {0}", "L_{2}", "{1}_L", "l{1}", "{0}L"),
)
OTHER = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "L": "R", "l": "r"}


def warned(records: list[logging.LogRecord], pattern: str) -> bool:
    """Whether a warning says it."""
    found = (r.getMessage() for r in records if r.levelno >= logging.WARNING)
    return any(re.search(pattern, text, re.IGNORECASE) for text in found)


@trials(100, "crowds")
def crowds(rng: random.Random, folder: Path) -> str:
    """Some or all annotations of one or two files are crowds: they are no objects, and without
    objects it is refused."""
    share, masks, parts = rng.choice((0, 0.5, 0.8, 1)), rng.random() < 0.5, rng.choice((1, 2))
    content = scene(rng, folder, [rng.randrange(4) for _ in range(rng.randint(parts, 6))])
    for a in content["annotations"]:
        a["iscrowd"] = int(rng.random() < share)
    crowd, objects = ([a for a in content["annotations"] if a["iscrowd"] == n] for n in (1, 0))
    for a in rng.sample(objects, len(objects) // 3):
        del a["iscrowd"]
    for a in content["annotations"]:
        if not masks and (not a.get("iscrowd") or rng.random() < 0.3):
            del a["segmentation"]
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
        is_right = counts == [len(objects)] * 2 + [len(crowd)] and {*said} <= {str(len(objects))}
        return "" if is_right else f"{counts}, said {said}, for {len(objects)} objects"


@trials(150, "images in one file")
def frames(rng: random.Random, folder: Path) -> str:
    """Pages, frames or a second image in a file, perhaps turned: what was written is shown."""
    file, what, expected, tolerance = picture(rng, folder, rng.choice(((64, 48), (48, 64))), 4)
    with accepted(" F," not in what):
        found = list(read_frames(file, "RGB"))
    if [n for n, _ in found] != ([None] if len(expected) == 1 else list(range(len(expected)))):
        return f"{what}: {len(found)} frames of {len(expected)}"
    for (number, levels), shown in zip(found, expected, strict=True):
        if levels.shape != shown.shape or np.abs(levels - shown).max() > tolerance:
            return f"{what}: frame {number} shows others"
    return ""


@trials(60, "bit depths")
def depths(rng: random.Random, folder: Path) -> str:
    """16-bit grays of any range: training and prediction see the same, of a low one they warn."""
    content = scene(rng, folder, [1] * rng.randint(1, 4))
    highest = round(2 ** rng.uniform(8, 16)) - 1
    levels = {}
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.{rng.choice(('png', 'tif', 'pgm', 'jp2'))}"
        gray = integers(rng, highest, (HEIGHT, WIDTH))
        gray[0, 0] = highest
        kind = rng.choice(("<u2", ">u2")) if image["file_name"].endswith("tif") else "<u2"
        Image.fromarray(gray.astype(kind)).save(folder / "images" / image["file_name"])
        levels[image["id"]] = np.stack([(gray + 128) // 257] * 3, -1)
    with logged() as records:
        cfg = fit(write(folder, content), "INPUT.RANDOM_FLIP none")
        for record in load_train_dataset(cfg):
            ((_, predicted),) = read_frames(record["file_name"], "BGR")
            for image in (Mapper(cfg)(record)["image"].permute(1, 2, 0).numpy(), predicted):
                if not np.array_equal(image, levels[record["image_id"]]):
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


@trials(120, "label images")
def labels(rng: random.Random, folder: Path) -> str:
    """Label images of all depths: classes stay what and where they are."""
    depths = [(0, n) for n in (1, 2, 4, 8, 16)] + [(3, n) for n in (1, 2, 4, 8)] + [(2, 8)]
    color, bits = rng.choice(depths)
    known = np.array(rng.sample(range(1 << bits), min(1 << bits, rng.randint(2, 12))))
    index = integers(rng, len(known) - 1, (6, 8)).repeat(16, 0).repeat(16, 1)
    (folder / "labels.png").write_bytes(png(known[index], bits, color))
    Image.fromarray((index * 20).astype(np.uint8)).save(folder / "image.png")  # shows its labels
    side, crop = rng.choice((HEIGHT, HEIGHT, 61, 150)), rng.random() < 0.2
    flip, mode = rng.choice(("none", "horizontal", "vertical")), rng.choice(("pil", "cv2"))
    opts = f"INPUT.MIN_SIZE_TRAIN ({side},) INPUT.RANDOM_FLIP {flip} INPUT.RESIZE_TRAIN {mode}"
    opts += f" INPUT.CROP.ENABLED {crop}"
    cfg = load_config("Digits/semantic_R_18_FPN_gn_ws.yaml", opts.split())
    record = {"file_name": f"{folder}/image.png", "sem_seg_file_name": f"{folder}/labels.png"}
    mapped = Mapper(cfg)({**record, "width": WIDTH, "height": HEIGHT})
    found, levels = mapped["sem_seg"].numpy(), mapped["image"][0].numpy()
    if others := {*found.flat} - {*known}:
        return f"{bits} bits, color {color}: {sorted(others)[:5]} of {known}"
    is_moved = side == HEIGHT and not crop and (known[levels // 20] != found).any()
    return f"{bits} bits, color {color}: labels beside their image" if is_moved else ""


@trials(120, "keypoint names")
def keypoints(rng: random.Random, folder: Path) -> str:
    """Names with sides in any spelling: flipped, left becomes right; without sides it is said."""
    side = rng.choice(SIDES) if rng.random() < 0.8 else ""
    word = next((word for word in OTHER if word in side), "")
    alone = ("nose", "cleft", "leftover", "bright", "tail_2", "kp_17", "upper lip")
    names = rng.sample(alone, rng.randint(0 if side else 1, 4))
    partner = {name: name for name in names}
    for part in rng.sample(("eye", "ear", "wrist", "heel", "shoulder"), rng.randint(1, 4)):
        if side:
            spelled = (side, side.replace(word, OTHER[word]))
            left, right = (s.format(part, part.title(), part.upper()) for s in spelled)
            partner.update({left: right, right: left})
    names = rng.sample([*partner], len(partner))
    content = scene(rng, folder, [1])
    black = np.zeros((HEIGHT, WIDTH), np.uint8)
    black[0, 0] = 255  # shows whether it is flipped
    cv2.imwrite(str(folder / "images" / "0.png"), black)
    points = {name: (rng.randrange(WIDTH), rng.randrange(HEIGHT)) for name in names}
    flat = [v for name in names for v in (*points[name], 2)]
    content["annotations"][0].update(keypoints=flat, num_keypoints=len(names))
    for category in content["categories"]:
        category.update(keypoints=names, skeleton=[])
    config, flip = "Digits/keypoint_rcnn_R_18_FPN_gn_ws.yaml", "INPUT.RANDOM_FLIP horizontal"
    with logged() as records:
        cfg = fit(write(folder, content), flip, config)
        mapper, (record,) = Mapper(cfg), load_train_dataset(cfg)
        mapped = next(m for m in iter(lambda: mapper(record), None) if not m["image"][0, 0, 0])
    found = mapped["instances"].gt_keypoints.tensor[0, :, :2].tolist()
    # Detectron2 adds 0.5.
    expected = [(WIDTH - x - 0.5, y + 0.5) for x, y in (points[partner[name]] for name in names)]
    if not np.allclose(found, expected, atol=0.01):
        return f"left and right of {names} are not exchanged, or others are"
    is_said = side or len(names) == 1 or warned(records, "flip")
    return "" if is_said else f"no warning for {names}"


def indexed(content: dict[str, Any]) -> COCO:
    """For pycocotools, to which 0 is not the id of an annotation."""
    coco = COCO()
    numbered = [{**a, "id": 1 + n} for n, a in enumerate(content["annotations"])]
    coco.dataset = {**content, "annotations": numbered}
    coco.createIndex()
    return coco


def score(evaluator: DatasetEvaluator, name: str, content: dict[str, Any], limit: int) -> float:
    """The box AP of a model that finds all that ``content`` says, or ``limit`` objects of an image,
    on a dataset that is, or is a part of, this content: the lower one of the evaluator's and of
    pycocotools', by the user's own ids."""
    evaluator.reset()
    classes, coco = MetadataCatalog.get(name).thing_classes, indexed(content)
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    used = [(record, ids[Path(record["file_name"]).name]) for record in DatasetCatalog.get(name)]
    for record, number in used:
        objects = coco.imgToAnns[number][:limit]
        boxes = torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((record["height"], record["width"]), pred_boxes=Boxes(boxes))
        instances.scores = torch.rand(len(objects))
        found = [classes.index(coco.cats[a["category_id"]]["name"]) for a in objects]
        instances.pred_classes = torch.tensor(found, dtype=int)
        evaluator.process([record], [{"instances": instances}])
    found = evaluator.evaluate()["bbox"]["AP"]
    (file,) = Path(evaluator._output_dir).glob("coco_instances_results.json")
    judge = COCOeval(coco, coco.loadRes(str(file)), "bbox")
    judge.params.imgIds, judge.params.maxDets = [number for _, number in used], [limit]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0]  # of all areas
    return min(found, 100 * precision[precision > -1].mean())


@trials(40, "many objects")
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


@trials(60, "truth of parts")
def truth(rng: random.Random, folder: Path) -> str:
    """Detectron2's own evaluator of a file or a part of it: a model that finds all has AP 100."""
    content = scene(rng, folder, [rng.randint(1, 3) for _ in range(rng.randint(5, 12))])
    file = write(folder, content)
    fit(f"{file}#train", f"DATASETS.FINAL_TEST ('{file}',)", test=f"{file}#val")
    name = f"{file}{rng.choice(('#train', '#val', ''))}"
    evaluator = COCOEvaluator(name, ("bbox",), False, output_dir=str(folder))
    found = score(evaluator, name, content, 100)
    return "" if found > 99.9 else f"{name[-6:]}: AP {found:.1f}"


@trials(80, "areas")
def areas(rng: random.Random, folder: Path) -> str:
    """No area beside masks: it is that of the mask, for each way to the truth."""
    content = scene(rng, folder, [rng.randint(1, 4) for _ in range(2)])
    coco, expected = indexed(content), {}
    for number, annotation in enumerate(content["annotations"]):
        by_pixels = float(rle.area(coco.annToRLE(annotation)))
        expected[tuple(annotation["bbox"])] = sorted((annotation.pop("area"), by_pixels))
        annotation["iscrowd"] = int(number > 0 and rng.random() < 0.2)
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


@trials(100, "splits")
def splits(rng: random.Random, folder: Path) -> str:
    """A few images, of which few have objects, and copies: both parts have objects wherever that is
    possible, and the refusal says what to do."""
    share = rng.choice((0.1, 0.3, 1))
    objects = [int(rng.random() < share) * rng.randint(1, 3) for _ in range(rng.randint(1, 12))]
    content = scene(rng, folder, objects)
    originals = {}
    for image in content["images"]:
        original = f"{rng.randrange(10**6 if rng.random() < 0.6 else 4)}_jpg"
        name = f"{original}.rf.{rng.getrandbits(64):x}.png"
        move(folder, image, f"images/{name}")
        image["file_name"], originals[name] = name, original
    used = {original for original, n in zip(originals.values(), objects, strict=True) if n}
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
    (train, val), again = parts
    if again != [train, val] or sorted(train + val) != sorted(originals):
        return "the split depends on the order, or loses images"
    shared = {originals[name] for name in train} & {originals[name] for name in val}
    return f"copies of {shared} in both parts" if shared else ""


def spellings(rng: random.Random, name: str) -> tuple[str, ...]:
    """What other programs make of a path in the folder "images"; the first two are exact."""
    elsewhere = rng.choice(("/home/me/images/", "C:/me/images/", "file:///x/images/"))
    case = rng.choice((name.swapcase(), name.lower(), name.upper()))
    inside = rng.choice(("images/", "data/set/images/"))
    return (
        *(name, f"./{name}", f"images/{name}".replace("/", "\\"), quote(name), Path(name).name),
        *(case, f"{elsewhere}{name}", unicodedata.normalize("NFD", name), f"{inside}{name}"),
    )


@trials(120, "names on disk")
def names(rng: random.Random, folder: Path) -> str:
    """Names that are others than on the disk, beside similar ones: the image that is meant is used,
    or the refusal names the file."""
    content = scene(rng, folder, [1] * rng.randint(1, 5))
    way, is_exact, shown = rng.randrange(9), True, {}
    for number, image in enumerate(content["images"]):
        name = rng.choice(ON_DISK).format(number)
        file = move(folder, image, f"images/{name}")
        shown[image["id"]] = cv2.imread(str(file))[0, 0, ::-1].tolist()
        image["file_name"] = spellings(rng, name)[way if rng.random() < 0.8 else 0]
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
                if Mapper(cfg)(record)["image"][:, 0, 0].tolist() != shown[record["image_id"]]:
                    return f"way {way}: another image is used"
    except DatasetError as error:
        if not any(name in str(error) or repr(name)[1:-1] in str(error) for name in listed):
            raise Wrong(f"refused without a name: {error}") from error
        raise
    return ""


def command(*words: object) -> None:
    """Run a command of ``gnws`` in this process."""
    os.environ["GNWS_D2_DEBUG"] = "1"  # an error is raised and not printed
    name, *others = map(str, words)
    program = importlib.import_module(COMMANDS[name][0])
    if code := program.main(parse("", [name, *others])):
        raise Wrong(f"gnws {name} ended with code {code}")


def trained(folder: Path, content: dict[str, Any]) -> Path:
    """The weights in the folder of a run, as a training leaves it."""
    file, run = write(folder, content), folder / "run"
    cfg = fit(file, f"OUTPUT_DIR {run} DATASETS.FINAL_TEST ('{file}',)")
    for name in ("report/report.html", "inference/coco_instances_results.json", "config.yaml"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(config_text(cfg) if name == "config.yaml" else "[]")
    Checkpointer(build_model(cfg), str(run), cfg=cfg).save("model_final")
    return run / "model_final.pth"


@trials(20, "image ids")
def image_ids(rng: random.Random, folder: Path) -> str:
    """gnws predict --image-ids, cameras with the same names: the ids are those of the file."""
    content = scene(rng, folder, [1, 1, 1])
    weights, expected, way = trained(folder, content), {}, rng.randrange(9)
    is_text, is_ambiguous = rng.random() < 0.3, rng.random() < 0.5
    for number, image in enumerate(content["images"]):
        name = f"{number // 2 if is_ambiguous else number:04d}.png"
        name = f"{rng.choice(('', 'day1/'))}c\u00e4m {'AB'[number % 2]}/{name}"
        file = move(folder, image, f"photos/images/{name}")
        image["id"] = f"{number + 1:04d}" if is_text else image["id"] * rng.choice((1, 10**12))
        image["file_name"], expected[str(file)] = spellings(rng, name)[way], image["id"]
    if rng.random() < 0.3:
        content["images"].append({**image, "file_name": "0000.png", "id": "x" if is_text else -9})
    rng.shuffle(content["images"])
    (folder / "ids.json").write_text(json.dumps(content))
    os.chdir(folder)
    words = ("--weights", weights, "--output", "out", "--image-ids", "ids.json", "--input")
    with accepted(True if way < 2 else None):
        command("predict", *words, *expected)
    found = json.loads((folder / "out" / "detections.json").read_text())["images"]
    wrong = [i["id"] for i in found if i["id"] != expected[i["file_name"]]]
    return f"way {way}: {wrong} of {expected}" if wrong or len(found) != len(expected) else ""


@trials(6, "evaluations beside a run")
def beside(rng: random.Random, folder: Path) -> str:
    """gnws eval beside a run, from any folder: the run keeps its files, and there are results."""
    content = scene(rng, folder, [1, 2])
    weights, elsewhere = trained(folder, content), folder / "elsewhere"
    run = weights.parent
    elsewhere.mkdir()
    os.chdir(elsewhere)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    words: list[object] = ["eval", "--weights", weights]
    if rng.random() < 0.7:
        (folder / "own.json").write_text(json.dumps(content))
        words += ["--test", folder / "own.json"]
    words += ["--config-file", run / "config.yaml"] * (rng.random() < 0.3)
    words += ["OUTPUT_DIR", "named"] * (is_named := rng.random() < 0.3)
    command(*words)
    if changed := [f for f in before if not f.exists() or f.read_bytes() != before[f]]:
        return f"changed: {changed}"
    new = [f for top in (run, elsewhere) for f in top.rglob("*") if f.is_file() if f not in before]
    kept = (run, run / "report", run / "inference", elsewhere)
    if added := [f for f in new if f.parent in kept or (elsewhere in f.parents and not is_named)]:
        return f"added: {added[:5]}"
    return "" if any(f.name == "coco_instances_results.json" for f in new) else "no results"
