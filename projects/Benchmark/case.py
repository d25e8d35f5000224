"""One comparison: a model, its input, and how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

import gnws_d2
from gnws_d2.projects.acceleration import add_acceleration_config

# The eight architectures, and a config of each.
ARCHITECTURES = {
    f"{kind}_rcnn_{depth}_FPN": f"{folder}/{kind}_rcnn_{depth}_FPN_gn_ws_{schedule}.yaml"
    for kind, folder, schedule in (
        ("faster", "COCO-Detection", "1x"),
        ("mask", "COCO-InstanceSegmentation", "2x"),
    )
    for depth in ("R_50", "R_101", "X_50_32x4d", "X_101_32x4d")
}


@dataclass(frozen=True)
class Case:
    """What all variants are compared on, one image at a time."""

    level: str  # "backbone" (with FPN) or "model"
    model: str  # an architecture, or the name or file of a config
    size: tuple[int, int]  # height and width of the image, before padding
    mode: str  # "train" or "infer"
    precision: str = "fp32"  # or "bf16" (autocast)
    device: str = "cpu"
    opts: Sequence[str] = ()  # overrides of the config, KEY VALUE

    @property
    def training(self) -> bool:
        return self.mode == "train"

    def autocast(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16")

    def config(self, opts: Sequence[str] = ()) -> CfgNode:
        """The model's config with more overrides."""
        fixed = ["MODEL.DEVICE", self.device, "MODEL.WEIGHTS", "", "VIS_PERIOD", "0"]
        # The optimizer takes its step, and all weights stay as they are.
        fixed += ["SOLVER.BASE_LR", "0.0"]
        file = ARCHITECTURES.get(self.model, self.model)
        return gnws_d2.load_config(file, [*fixed, *self.opts, *opts], [add_acceleration_config])
