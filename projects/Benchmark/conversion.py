#!/usr/bin/env python3
"""What converting a checkpoint costs: paired with reading and writing the same file unchanged.

    python projects/Benchmark/conversion.py

The file is a Mask R-CNN R-50 (180 MB of random numbers) as OpenMMLab publishes one. Each of nine
rounds times torch.load and torch.save on it, then the conversion with all its checks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from measure import seconds

from gnws_d2 import load_config
from gnws_d2.checkpoint import detectron2_to_mmdet
from gnws_d2.checkpoint.convert import convert_file

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
ROUNDS = 9


def main(config: str = CONFIG) -> None:
    tensors = build_model(load_config(config, ["MODEL.DEVICE", "cpu"])).state_dict()
    with tempfile.TemporaryDirectory() as name:
        source, copy, target = (Path(name) / f"{n}.pth" for n in ("source", "copy", "target"))
        torch.save({"state_dict": detectron2_to_mmdet(tensors, config)}, source)
        size = source.stat().st_size / 1e6

        times = np.empty((ROUNDS, 2))
        for row in times:
            row[0] = seconds(lambda: torch.save(torch.load(source, weights_only=True), copy))
            row[1] = seconds(lambda: convert_file(source, target, "detectron2", config))
            target.unlink()
    plain, converted = np.median(times, axis=0)
    ratios = np.sort(times[:, 1] / times[:, 0])
    print(
        f"{size:.0f} MB, {ROUNDS} rounds, medians: load and save {plain:.2f} s, conversion "
        f"{converted:.2f} s; ratio {np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
