#!/usr/bin/env python3
"""What converting a checkpoint costs: paired with reading and writing the same file unchanged.

    python projects/Benchmark/conversion.py

The file is a Mask R-CNN R-50 (180 MB of random numbers) as OpenMMLab publishes one. Each round
times torch.load and torch.save on it, then the conversion with all its checks, in one process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gnws_d2 import load_config
from gnws_d2.checkpoint import detectron2_to_mmdet
from gnws_d2.checkpoint.convert import convert_file
from gnws_d2.checkpoint.structure import shapes_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    shapes = shapes_of(load_config(args.config_file))
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as name:
        source, copy, target = (Path(name) / f"{n}.pth" for n in ("source", "copy", "target"))
        torch.save({"state_dict": detectron2_to_mmdet(tensors, args.config_file)}, source)
        times = np.empty((args.rounds, 2))
        for i in range(args.rounds):
            target.unlink(missing_ok=True)
            start = time.perf_counter()
            torch.save(torch.load(source, weights_only=True), copy)
            middle = time.perf_counter()
            convert_file(source, target, "detectron2", args.config_file)
            times[i] = middle - start, time.perf_counter() - middle
        size = source.stat().st_size / 1e6
    plain, converted = np.median(times, axis=0)
    ratios = np.sort(times[:, 1] / times[:, 0])
    print(
        f"{size:.0f} MB, {args.rounds} rounds, medians: load and save {plain:.2f} s, conversion "
        f"{converted:.2f} s; ratio {np.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
