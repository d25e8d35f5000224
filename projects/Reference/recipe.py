"""What both frameworks train: the models, the data, the schedule, and the rules that are changed.

A :class:`Job` is one training. Its numbers come from the packaged config of the demo, which
:mod:`ours` uses as it is and :mod:`theirs` translates.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

import gnws_d2
from gnws_d2.files import atomic_write
from gnws_d2.projects.digits import make_digits

OURS, THEIRS = "gnws_d2", "MMDetection"
SEEDS = (1, 2, 3, 4)
WINDOW = 10  # iterations that a point of a loss curve averages
CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
# What a training differs by from the config, KEY VALUE.
TASKS: dict[str, list[str]] = {
    "Mask R-CNN": [],
    "Faster R-CNN": ["MODEL.MASK_ON", "False"],
    # FINE_TUNED, on two classes: even and odd.
    "fine-tuning": [
        *("MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.BACKBONE.FREEZE_AT", "2"),
        *("SOLVER.MAX_ITER", "150", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "20"),
    ],
}
# One rule changed, of the side that is named first.
CHANGES = {
    "masks resized as OpenCV": OURS,
    "masks resized exactly": THEIRS,
    "Detectron2's anchors": OURS,
    "Detectron2's proposals": OURS,
    "Detectron2's initialization": OURS,
    "Pillow": OURS,
}


@dataclass(frozen=True)
class Job:
    """One training: of a task, by a side, with a seed, and one rule changed or none."""

    task: str
    side: str
    seed: int
    change: str = ""

    @property
    def name(self) -> str:
        words = (self.task, self.side, self.change, f"seed {self.seed}")
        return "-".join(word.replace("'", "").replace(" ", "_") for word in words if word)


MAIN = next(iter(TASKS))  # the task whose rules are changed, and whose losses are drawn
FINE_TUNED = Job(MAIN, THEIRS, SEEDS[0])


def jobs() -> list[Job]:
    """All trainings, in the order in which they are run."""
    compared = [
        Job(task, side, seed) for task in TASKS for seed in SEEDS for side in (THEIRS, OURS)
    ]
    changed = [Job(MAIN, side, seed, name) for name, side in CHANGES.items() for seed in SEEDS]
    return [*compared, *changed]


def job_config(job: Job, folder: Path) -> CfgNode:
    """The config of a training that writes into ``folder``: the demo's, with the images resized by
    OpenCV in both frameworks."""
    opts = ["OUTPUT_DIR", str(folder), "SEED", str(job.seed), "MODEL.DEVICE", "cpu"]
    opts += ["INPUT.RESIZE_TRAIN", "cv2", "INPUT.RESIZE_TEST", "cv2"]
    return gnws_d2.load_config(CONFIG, [*opts, *TASKS[job.task]])


def annotation_file(job: Job, split: str, folder: Path) -> Path:
    """The annotations of Digits' ``split``, "train" or "val"; for fine-tuning, with the classes
    even and odd, written into ``folder``."""
    file = make_digits() / f"digits_{split}.json"
    if job.task != "fine-tuning":
        return file
    content = json.loads(file.read_text(encoding="utf-8"))
    digits = {category["id"]: int(category["name"]) for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation["category_id"] = 1 + digits[annotation["category_id"]] % 2
    content["categories"] = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    with atomic_write(folder / file.name) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")
    return folder / file.name


def learning_rates(cfg: CfgNode) -> list[float]:
    """Of each iteration, by Detectron2's scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], cfg.SOLVER.BASE_LR)
    scheduler: Any = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return rates
