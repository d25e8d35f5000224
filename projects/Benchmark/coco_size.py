#!/usr/bin/env python3
"""Measure the start of a training on data of COCO's size, this package's commands beside
Detectron2's trainer with the same config and data: seconds to the first checkpoint, after one
iteration, and peak memory.

    python projects/Benchmark/coco_size.py make FOLDER     # 118,000 images, 860,000 objects; 0.8 GB
    python projects/Benchmark/coco_size.py start FOLDER    # on a quiet machine
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from detectron2 import model_zoo
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from results import machine
from tabulate import tabulate

from gnws.marked_text import update_marked

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
IMAGES, OBJECTS, OWN, PICTURES = 118_000, 860_000, 20_000, 8
WIDTH, HEIGHT = 640, 480
CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"  # Detectron2's
OPTS = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.MAX_ITER", "1"]
OPTS += ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0"]
OPTS += ["DATASETS.TEST", "()"]
# As Detectron2's tools/train_net.py, and on a CPU also with several processes.
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
    command = [
        "--config-file",
        model_zoo.get_config_file(CONFIG),
        "--num-gpus",
        str(processes),
        *data,
        *OPTS,
    ]
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
    os.environ |= {"DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": "1"}
    own = f"{folder}/coco/annotations/own.json={folder}/coco/train2017"
    rows = []
    for kind, processes, workers in cases:
        name = "coco_2017_train" if kind == "COCO" else own
        found: dict[str, list[np.ndarray]] = {DETECTRON2: [], OURS: []}
        for i in range(rounds):
            for program in list(found)[:: -1 if i % 2 else 1]:
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
    about = machine("cpu")
    note = f"{about['machine']}, {os.cpu_count()} cores, {about['date']}, {about['commit']}"
    print(table)
    update_marked(DOCUMENT, {"coco-size": f"{table}\n\nRounds: {rounds}; {note}."})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "start"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--case", nargs=3, action="append", metavar=("DATA", "PROCESSES", "WORKERS")
    )
    args = parser.parse_args()
    if args.action == "make":
        return make(args.folder, args.images, OBJECTS * args.images // IMAGES)
    several = [("COCO", n, w) for n in (1, 2) for w in (0, 4)]
    cases = args.case or [*several, ("own", 1, 0), ("own", 1, 4)]
    measure(args.folder, args.rounds, [(d, int(p), int(w)) for d, p, w in cases])


if __name__ == "__main__":
    main()
