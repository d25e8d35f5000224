#!/usr/bin/env python3
"""Fine-tuning the detector of detector.py with 1 and 2 images per step, from a backbone that was
trained to classify digits.

    python projects/MicroBatch/finetune.py --output output/micro_batch

Compared, each with the frozen stem and first stage of Detectron2's default:

- FrozenBN: a backbone trained with BN, whose statistics and affine parameters are constants, and no
  norm in FPN and head, as Detectron2's model zoo has it;
- BN: the same, but with BN training on in the backbone's other stages;
- GN+WS in the backbone, FPN and head.

Started again, it runs only what is missing.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import detector
import torch
from classifier import Batch, accuracy, optimize
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from experiment import Job, Preset
from run import command
from torch import nn
from torch.nn import functional as F

from gnws_d2.data.digits import make_digits
from gnws_d2.files import atomic_write

NORMS = ("FrozenBN", "BN", "GN+WS")
EXPERIMENTS = {
    "pretrain": Preset(
        images=12800, reference_lr=0.0125, seeds=1, norms=("BN", "GN+WS"), batches=(32,)
    ),
    "finetune_lr": Preset(
        images=1600,
        lr_grid=detector.LR_GRID,
        seeds=1,
        first_seed=100,
        norms=NORMS,
        batches=(2,),
    ),
    "finetune": Preset(images=1600, seeds=3, norms=NORMS, batches=(1, 2)),
}
WEIGHTS = Path("output/micro_batch_weights")
CROP = 32  # pixels; the digits of the detector have 18 to 38


@functools.cache
def crops(split: str) -> Batch:
    """All digits of "train" or "val" with some ground around, (N, 3, CROP, CROP) RGB, and their
    classes."""
    make_digits()
    images, labels = [], []
    for record in DatasetCatalog.get(f"digits_{split}"):
        image = torch.from_numpy(read_image(record["file_name"], "RGB").copy()).permute(2, 0, 1)
        for digit in record["annotations"]:
            x, y, width, height = (round(value) for value in digit["bbox"])
            margin = max(width, height) // 8
            top, left = max(y - margin, 0), max(x - margin, 0)
            crop = image[:, top : y + height + margin, left : x + width + margin].float()
            images.append(F.interpolate(crop[None], (CROP, CROP), mode="area")[0])
            labels.append(digit["category_id"])
    return torch.stack(images), torch.tensor(labels)


def job_config(job: Job, folder: str) -> CfgNode:
    cfg = detector.job_config(job, folder)
    cfg.defrost()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2 if job.experiment != "pretrain" else 0
    if not job.standardized:
        cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = ""
    cfg.freeze()
    return cfg


def weights_file(norm: str) -> Path:
    return WEIGHTS / f"R-18-{norm.removeprefix('Frozen')}.pth"


class Classifier(nn.Module):
    """The backbone of a detector with a linear layer; takes RGB, (N, 3, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone.bottom_up
        self.register_buffer("mean", model.pixel_mean)
        self.register_buffer("std", model.pixel_std)
        self.classify = nn.Linear(self.backbone.output_shape()["res4"].channels, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.backbone((images - self.mean) / self.std)["res4"]
        return self.classify(features.mean((2, 3)))


def pretrain(job: Job) -> list[dict[str, Any]]:
    """Train a backbone to classify, and save it."""
    torch.manual_seed(job.seed)
    model = Classifier(build_model(job_config(job, "")))
    optimize(model, crops("train"), job)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    with atomic_write(weights_file(job.norm)) as partial:
        torch.save(model.backbone.state_dict(), partial)
    return [{"accuracy": accuracy(model, crops("val"))}]


def load_backbone(job: Job, model: nn.Module) -> None:
    state = torch.load(weights_file(job.norm))
    missing, unexpected = model.backbone.bottom_up.load_state_dict(state, strict=False)
    # FrozenBatchNorm2d does not count batches.
    if wrong := [k for k in missing + unexpected if not k.endswith("num_batches_tracked")]:
        raise ValueError(
            f"{weights_file(job.norm)} does not fit the backbone of {job.name}: {wrong}."
        )


def train(job: Job) -> list[dict[str, Any]]:
    if job.experiment == "pretrain":
        return pretrain(job)
    return detector.train(job, job_config, load_backbone)


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS, score="AP")
