#!/usr/bin/env python3
"""Fine-tuning the detector of detector.py with 1 and 2 images per step, from a backbone that was
trained to classify digits.

    python projects/MicroBatch/finetune.py --output output/micro_batch

The stem and the first stage are frozen, as is Detectron2's default. It compares:

- FrozenBN: a backbone trained with BN, whose statistics and affine parameters are constants, and no
  norm in the FPN and the head, as in Detectron2's model zoo;
- BN: the same, but BN is trained in the backbone's other stages;
- GN+WS in the backbone, the FPN and the head.
"""

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
from experiment import Job, Preset, command
from torch import nn
from torch.nn import functional as F

from gnws_d2.files import atomic_write
from gnws_d2.projects.digits import make_digits

NORMS = ("FrozenBN", "BN", "GN+WS")
EXPERIMENTS = {
    "pretrain": Preset(images=12800, lrs=[0.0125], norms=NORMS[1:], batches=[32], seeds=[0]),
    "finetune_lr": Preset(images=1600, lrs=detector.LR_GRID, norms=NORMS, batches=[2], seeds=[100]),
    "finetune": Preset(images=1600, norms=NORMS, batches=(1, 2)),
}
WEIGHTS = Path("output/micro_batch_weights")
CROP = 32  # pixels; the digits that the detector sees have 18 to 38


@functools.cache
def crops(split: str) -> Batch:
    """All digits of "train" or "val" with an eighth of their size added on each side, as RGB
    (N, 3, CROP, CROP), and their classes (N,)."""
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
    cfg.MODEL.BACKBONE.FREEZE_AT = 2 if job.experiment != "pretrain" else 0
    if not job.norm.endswith("+WS"):
        cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = ""
    return cfg


def weights_file(norm: str) -> Path:
    return WEIGHTS / f"R-18-{norm.removeprefix('Frozen')}.pth"


class Classifier(nn.Module):
    """The backbone of a detector with a linear layer; takes RGB (N, 3, H, W), returns (N, 10)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone.bottom_up
        self.register_buffer("mean", model.pixel_mean)
        self.register_buffer("std", model.pixel_std)
        self.classify = nn.Linear(self.backbone.output_shape()["res4"].channels, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.backbone((images - self.mean) / self.std)["res4"]
        return self.classify(features.mean((2, 3)))


def pretrain(job: Job) -> dict[str, Any]:
    """Train a backbone to classify, and save it."""
    torch.manual_seed(job.seed)
    model = Classifier(build_model(job_config(job, "")))
    optimize(model, crops("train"), job)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    with atomic_write(weights_file(job.norm)) as unfinished:
        torch.save(model.backbone.state_dict(), unfinished)
    return {"accuracy": accuracy(model, crops("val"))}


def load_backbone(job: Job, model: nn.Module) -> None:
    backbone = model.backbone.bottom_up
    wanted = backbone.state_dict()
    saved = torch.load(weights_file(job.norm))
    # FrozenBatchNorm2d has no num_batches_tracked.
    backbone.load_state_dict({name: value for name, value in saved.items() if name in wanted})


def train(job: Job) -> dict[str, Any]:
    if job.experiment == "pretrain":
        return pretrain(job)
    return detector.train(job, job_config, load_backbone)


if __name__ == "__main__":
    command(__doc__, train, EXPERIMENTS, score="AP")
