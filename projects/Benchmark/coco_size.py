#!/usr/bin/env python3
"""Measure the start of a training on data of COCO's size, this package's commands beside
Detectron2's trainer with the same config and data: seconds to the first checkpoint, after one
iteration, and peak memory.

    python projects/Benchmark/coco_size.py make FOLDER     # 118,000 images, 860,000 objects; 0.8 GB
    python projects/Benchmark/coco_size.py start FOLDER    # on a quiet machine
    python projects/Benchmark/coco_size.py score FOLDER

The last measures evaluation and report of 500,000 detections of 36,000 objects in 5,000 images.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from detectron2 import model_zoo
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from pycocotools import mask as mask_util
from results import publish
from tabulate import tabulate

from gnws_d2 import load_config
from gnws_d2.engine import build_evaluator
from gnws_d2.projects.own_data import fit_to_data
from gnws_d2.projects.report import report_run

IMAGES, OBJECTS, OWN, PICTURES = 118_000, 860_000, 20_000, 8
VALIDATION, CLASSES = (5_000, 36_000, 500_000), (80, 365, 1203)  # images, objects, detections
WIDTH, HEIGHT = 640, 480
NEW = "own, new"  # which is checked; its check is kept for the cases that follow
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"  # Detectron2's
SCORED = "Small/mask_rcnn_R_18_FPN_gn_ws.yaml"
OPTS = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.MAX_ITER", "1"]
OPTS += ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0"]
OPTS += ["DATASETS.TEST", "()"]
# As Detectron2's tools/train_net.py. It cannot train in several processes on a CPU, and nothing can
# be overridden there: this program, the other side of the comparison, replaces the wrapper.
DETECTRON2 = """
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.engine import defaults

wrap = defaults.create_ddp_model
defaults.create_ddp_model = lambda model, **options: wrap(model, device_ids=None, **options)


def main(args):
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    (name,) = cfg.DATASETS.TRAIN
    if "=" in name:
        register_coco_instances(name, {}, *name.split("="))
    default_setup(cfg, args)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load()
    trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, dist_url="auto", args=(args,))
"""
OURS = (Path(__file__).parents[1] / "Detection" / "train_net.py").read_text()


def make(folder: Path, images: int, objects: int) -> None:
    """Write a file like COCO's for training, the first OWN of its images as a file of their own,
    and the images, which are links to a few."""
    rng = np.random.default_rng(0)
    root = folder / "coco" / "train2017"
    root.mkdir(parents=True)
    (root.parent / "annotations").mkdir()
    for number in range(PICTURES):
        coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg")
    listed = []
    for number in range(1, images + 1):
        name = f"{number:012}.jpg"
        os.symlink(folder.resolve() / f"{number % PICTURES}.jpg", root / name)
        listed.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    owners = np.sort(rng.integers(1, images + 1, objects)).tolist()
    annotations = [
        {"id": number, "image_id": owner, **_object(rng, categories)}
        for number, owner in enumerate(owners, 1)
    ]
    for name, count in (("instances_train2017", images), ("own", min(OWN, images))):
        part = [a for a in annotations if a["image_id"] <= count]
        content = {"images": listed[:count], "annotations": part, "categories": categories}
        (root.parent / "annotations" / f"{name}.json").write_text(json.dumps(content))


def score(folder: Path, classes: int) -> list[float]:
    """Seconds of the evaluation and of the report of detections in the validation images with as
    many classes, and the GiB of the process at its peak."""
    images, objects, detections = VALIDATION
    rng = np.random.default_rng(0)
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)]
    listed = [
        {"id": i, "file_name": f"{i:012}.jpg", "width": WIDTH, "height": HEIGHT}
        for i in range(1, images + 1)
    ]
    truth = [
        {"id": i, "image_id": int(rng.integers(1, images + 1)), **_object(rng, categories)}
        for i in range(1, objects + 1)
    ]
    file = folder / f"{classes}.json"
    content = {"images": listed, "annotations": truth, "categories": categories}
    file.write_text(json.dumps(content))
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in listed}
    for number in range(detections):  # every tenth near an object
        near = truth[number // 10 % objects] if number % 10 == 0 else _object(rng, categories)
        mask = near["segmentation"]
        if isinstance(mask, list):
            moved = (np.array(mask) + rng.normal(0, 2, 2).repeat(len(mask[0]) // 2)).tolist()
            mask = mask_util.merge(mask_util.frPyObjects(moved, HEIGHT, WIDTH))
        else:
            mask = mask_util.frPyObjects(mask, HEIGHT, WIDTH)
        mask["counts"] = mask["counts"].decode()
        image = near.get("image_id", number % images + 1)
        row = {"image_id": image, "category_id": near["category_id"] - 1, "segmentation": mask}
        found[image].append({**row, "bbox": near["bbox"], "score": float(rng.random())})
    name = f"{file}={folder / 'coco' / 'train2017'}"
    opts = ["DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(folder / "scored")]
    cfg = fit_to_data(load_config(SCORED, [*opts, "MODEL.DEVICE", "cpu"]))
    evaluator = build_evaluator(cfg, name)
    evaluator._predictions = [{"image_id": i, "instances": rows} for i, rows in found.items()]
    began = time.monotonic()
    evaluator.evaluate()
    evaluated = time.monotonic()
    report_run(cfg)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [evaluated - began, time.monotonic() - evaluated, peak]


def _object(rng: np.random.Generator, categories: list[dict[str, Any]]) -> dict[str, Any]:
    """A polygon of as many points as COCO's have, or a crowd's mask."""
    width, height = np.exp(rng.uniform(np.log(8), np.log(300), 2))
    center = rng.uniform((width / 2, height / 2), (WIDTH - width / 2, HEIGHT - height / 2))
    angles = np.linspace(0, 2 * np.pi, rng.integers(8, 45), endpoint=False)
    points = center + np.stack([np.cos(angles) * width, np.sin(angles) * height], 1) / 2
    points = points.round(2)
    low, high = points.min(0), points.max(0)
    sides = (high - low).round(2)
    mask: Any = [points.ravel().tolist()]
    is_crowd = rng.random() < 0.01
    if is_crowd:
        (left, top), (columns, rows) = low.astype(int).tolist(), sides.astype(int).tolist()
        runs = [left * HEIGHT + top, *([rows, HEIGHT - rows] * columns)]
        runs[-1] = HEIGHT * WIDTH - sum(runs[:-1])
        mask = {"counts": runs, "size": [HEIGHT, WIDTH]}
    return {
        "category_id": categories[int(rng.integers(len(categories)))]["id"],
        "bbox": [*low.tolist(), *sides.tolist()],
        "area": round(float(np.prod(sides)) * np.pi / 4, 2),
        "iscrowd": int(is_crowd),
        "segmentation": mask,
    }


def start(program: str, data: list[str], processes: int, workers: int) -> np.ndarray:
    """Seconds to the first checkpoint, and GiB at the peak: of all processes, each page counted
    once, and of the largest."""
    file = model_zoo.get_config_file(CONFIG)
    command = ["--config-file", file, "--num-gpus", str(processes), *data, *OPTS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "program.py")
        file.write_text(program)
        command += ["DATALOADER.NUM_WORKERS", str(workers), "OUTPUT_DIR", folder]
        began, peak = time.monotonic(), np.zeros(2)
        with open(Path(folder, "said"), "w+") as said:
            running = psutil.Popen([sys.executable, file, *command], stdout=said, stderr=said)
            while not Path(folder, "last_checkpoint").exists():
                used = list(_memory(running))
                peak = np.maximum(peak, [sum(used), max(used, default=0)])
                if running.poll() is not None:
                    said.seek(0)
                    sys.exit(said.read())
                time.sleep(0.2)
            seconds = time.monotonic() - began
            for process in [*running.children(recursive=True), running]:
                process.kill()
            running.wait()
    return np.array([seconds, *peak])


def _memory(process: psutil.Popen) -> Iterator[float]:
    for one in [process, *process.children(recursive=True)]:
        try:
            yield one.memory_full_info().pss / 2**30
        except psutil.Error:  # it has ended
            continue


def measure(folder: Path, rounds: int, cases: list[tuple[str, int, int]]) -> None:
    cache = folder / "cache"
    os.environ |= {"DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": "1"}
    os.environ["GNWS_D2_CACHE"] = str(cache)
    own = f"{folder}/coco/annotations/own.json={folder}/coco/train2017"
    rows = []
    for kind, processes, workers in cases:
        name = "coco_2017_train" if kind == "COCO" else own
        found: dict[str, list[np.ndarray]] = {DETECTRON2: [], OURS: []}
        for i in range(rounds):
            for program in list(found)[:: -1 if i % 2 else 1]:
                if kind == NEW:
                    shutil.rmtree(cache, ignore_errors=True)
                data = ["DATASETS.TRAIN", f"('{name}',)"]
                found[program].append(start(program, data, processes, workers))
                print(kind, processes, workers, program is OURS, found[program][-1], flush=True)
        theirs, ours = (np.array(found[program]) for program in (DETECTRON2, OURS))
        pair = np.median(theirs, 0), np.median(ours, 0), np.median(ours / theirs, 0)
        values = [value for column in zip(*pair, strict=True) for value in column]
        rows.append([kind, processes, workers, *values])
    header = ["data", "processes", "workers"]
    for what in ("s", "GiB in all", "GiB of the largest"):
        header += [f"Detectron2, {what}", f"here, {what}", "ratio"]
    table = tabulate(rows, header, tablefmt="github", floatfmt=".2f")
    publish("coco-start", table, f"Rounds: {rounds}")


def score_all(folder: Path, classes: Sequence[int]) -> None:
    spawned = multiprocessing.get_context("spawn")
    rows = []
    for count in classes:
        with spawned.Pool(1) as pool:  # a process each, for its peak of memory
            rows.append([count, *pool.apply(score, (folder, count))])
        print(rows[-1], flush=True)
    header = ["classes", "evaluation, s", "report, s", "GiB at the peak"]
    publish("coco-score", tabulate(rows, header, tablefmt="github", floatfmt=".1f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "start", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument(
        "--case", nargs=3, action="append", metavar=("DATA", "PROCESSES", "WORKERS")
    )
    args = parser.parse_args()
    if args.action == "make":
        return make(args.folder, args.images, OBJECTS * args.images // IMAGES)
    if args.action == "score":
        return score_all(args.folder, args.classes)
    several = [("COCO", 1, 0), ("COCO", 1, 4), ("COCO", 2, 0)]
    cases = args.case or [*several, (NEW, 1, 0), ("own, checked", 1, 0), ("own, checked", 2, 0)]
    measure(args.folder, args.rounds, [(d, int(p), int(w)) for d, p, w in cases])


if __name__ == "__main__":
    main()
