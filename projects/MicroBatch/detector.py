#!/usr/bin/env python3
"""A small Faster R-CNN on Digits, from random initialization, with 1, 2, 4 and 8 images per step.

    python projects/MicroBatch/detector.py --output output/micro_batch

The config, except for the norm and the schedule, is faster_rcnn_R_18_FPN.yaml.
"""

import contextlib
import functools
import io
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from classifier import forget_running_statistics
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone import build_resnet_backbone
from experiment import REFERENCE_BATCH, Job, Preset, command
from torch import nn

import gnws_d2
from gnws_d2.engine import Trainer
from gnws_d2.projects.digits import make_digits

LR_GRID = (0.03, 0.06, 0.12)
# The learning rate of each norm, chosen with a seed of its own; then all batches with equal images,
# and with the steps of a batch of 4.
EXPERIMENTS = {
    "detector_lr": Preset(images=5120, lrs=LR_GRID, batches=(2,), seeds=(100,)),
    "detector": Preset(images=5120),
    "detector_steps": Preset(steps=1280, batches=(1, 2)),
}
WARMUP = 0.1  # share of the images
CONFIG = Path(__file__).with_name("faster_rcnn_R_18_FPN.yaml")
PARTS = ["stem", "backbone", "fpn", "box_head"]  # all that have a norm


def load_digits_of_one_class(split: str) -> list[dict[str, Any]]:
    """Digits of "train" or "val" with boxes of one class: telling ten classes apart would take
    thousands of images more."""
    records = DatasetCatalog.get(f"digits_{split}")
    for record in records:
        record["annotations"] = [
            {"bbox": box["bbox"], "bbox_mode": box["bbox_mode"], "category_id": 0}
            for box in record["annotations"]
        ]
    return records


def register() -> None:
    """Register Digits of one class. Each job does it again, because the evaluator writes an
    annotation file into the folder of its job and keeps the path in the metadata."""
    for split in ("train", "val"):
        name = f"digits_of_one_class_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, functools.partial(load_digits_of_one_class, split))
        MetadataCatalog.pop(name, None)
        MetadataCatalog.get(name).set(thing_classes=["digit"], evaluator_type="coco")


@BACKBONE_REGISTRY.register()
def build_two_level_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet with FPN, without the level p6, which needs p5."""
    fpn, bottom_up = cfg.MODEL.FPN, build_resnet_backbone(cfg, input_shape)
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM)


def job_config(job: Job, folder: str) -> CfgNode:
    """The config of a job that writes into ``folder``; the Trainer scales it to the batch."""
    norm = job.norm.removesuffix("+WS").replace("BCN", "EstBCN")
    steps = job.images // REFERENCE_BATCH
    opts: list[Any] = ["OUTPUT_DIR", folder, "SEED", job.seed, "SOLVER.MAX_ITER", steps]
    opts += ["SOLVER.BASE_LR", job.reference_lr, "SOLVER.WARMUP_ITERS", round(WARMUP * steps)]
    opts += ["SOLVER.SCALE_TO_BATCH", job.batch, "MODEL.DEVICE", "cpu"]
    opts += ["MODEL.WS.PARTS", PARTS if job.norm.endswith("+WS") else []]
    for section in ("RESNETS", "FPN", "ROI_BOX_HEAD"):
        opts += [f"MODEL.{section}.NORM", norm]
    return gnws_d2.load_config(CONFIG, [str(word) for word in opts])


def train(
    job: Job,
    config: Callable[[Job, str], CfgNode] = job_config,
    prepare: Callable[[Job, nn.Module], None] = lambda *_: None,
) -> dict[str, Any]:
    """Train and evaluate. A model that finds nothing has an AP of 0.

    Args:
        config: the config of a job that writes into a folder.
        prepare: changes the model before the training.
    """
    make_digits()
    register()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = config(job, folder)
        cfg.freeze()
        trainer = Trainer(cfg)
        prepare(job, trainer.model)
        trainer.train()
        box = trainer._last_eval_results["bbox"]
        scores = {name: box[name] for name in ("AP", "AP50")}
        if forget_running_statistics(trainer.model):
            (name,) = cfg.DATASETS.TEST
            loader = build_detection_test_loader(cfg, name, batch_size=job.batch)
            evaluator = trainer.build_evaluator(cfg, name)
            results = inference_on_dataset(trainer.model, loader, evaluator)
            scores["AP_batch_statistics"] = results["bbox"]["AP"]
    return {name: 0.0 if math.isnan(value) else value for name, value in scores.items()}


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS, score="AP")
