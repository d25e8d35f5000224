#!/usr/bin/env python3
"""Export a detector to files that run without Detectron2 and without this package.

    export_model.py --weights output/digits/model_final.pth --input image.png --output exported
    export_model.py --weights model_final.pth --input *.jpg --format openvino openvino-int8
    demo.py --weights exported/model.onnx --input photos/     # runs a file

The first writes model_trace.ts and model_script.ts (TorchScript), model.pt2 (torch.export) and
model.onnx; the second writes model.xml and model_int8.xml (OpenVINO), with the weights beside them
in .bin files. Standardized weights are stored in plain convolutions. Each file takes images of any
size and is compared with the model in Detectron2, on every --input at two sizes: a file that does
not detect the same is not kept. In ONNX and OpenVINO, which sum in another order, 95% of detections
have to be the same; bfloat16 and 8-bit integers have a tolerance of their own. The integers' ranges
are those that occur in the --input images. If a format does not support the model, the exit code is
1.

A file takes one image a call: image, a float32 tensor (3, height, width), levels 0 to 255 in the
order of INPUT.FORMAT, resized as for evaluation. It returns boxes (detections, 4), scores and
classes (detections), and masks (detections, 1, 28, 28) over the boxes, in pixels of that tensor.
There is no batch: with GroupNorm, the padding of a batch would change what is computed. Call it in
several threads to run images at once. It stores the sizes, the order of channels, and the names and
ids of classes: in the metadata of ONNX, in rt_info of OpenVINO, in facts.json of the others.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

import gnws_d2
from gnws_d2.data import read_image
from gnws_d2.errors import add_debug_flag, one_line_errors
from gnws_d2.export import FORMATS, Exporter, ExportError
from gnws_d2.projects.acceleration import add_acceleration_config, pad_to_multiples
from gnws_d2.projects.detection.data_arguments import add_model_arguments, program_parser

DEFAULT = ["torchscript-trace", "torchscript-script", "torch-export", "onnx"]


def parse_args() -> argparse.Namespace:
    parser = add_model_arguments(program_parser(__doc__))
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=DEFAULT)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="IMAGE", help="real images, to compare on"
    )
    parser.add_argument("--output", type=Path, default=Path("output/exported"), metavar="FOLDER")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="of scores and mask probabilities, and of boxes in parts of their longer side; by "
        "default 0.001, and 0.05 in bfloat16 and int8",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return add_debug_flag(parser).parse_args()


class Predictor(gnws_d2.Predictor):
    """Of the keys of projects/Acceleration, only padding changes what a file computes."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        if cfg.INPUT.SIZE_DIVISIBILITY:
            pad_to_multiples(model, cfg.INPUT.SIZE_DIVISIBILITY)
        return model


@one_line_errors()
def main() -> int:
    args = parse_args()
    for name in ("gnws_d2", "fvcore"):
        setup_logger(name=name)
    if args.config_file and args.config_file.endswith(".py"):
        sys.exit(
            "A LazyConfig's model is exported from a script: gnws_d2.export.export(model, ...)."
        )
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    add_configs = [add_acceleration_config]
    predictor = Predictor(
        args.config_file, args.weights, opts=opts, add_configs=add_configs, folded=False
    )
    prepared = [predictor.prepare(read_image(file, "BGR"))["image"] for file in args.input]
    images = [image for original in prepared for image in at_two_sizes(original)]
    args.output.mkdir(parents=True, exist_ok=True)
    exporter = Exporter(predictor.model, images, facts(predictor))

    rows, refused, compared = [], 0, 0
    for name in args.format:
        file, tolerance = args.output / FORMATS[name].file, FORMATS[name].tolerance
        if args.tolerance is not None:
            tolerance = replace(tolerance, difference=args.tolerance)
        try:
            results = exporter.export(name, file, tolerance)
        except ExportError as error:
            print(error, file=sys.stderr)
            refused += 1
            continue
        detections = sum(result.same for result in results)
        difference = max(result.difference for result in results)
        parts = [file, file.with_suffix(".bin")]
        size = sum(part.stat().st_size for part in parts if part.exists())
        same = f"{detections} of {sum(result.expected for result in results)}"
        rows.append([file, size / 2**20, len(results), same, difference])
        compared += detections
    columns = ["file", "MiB", "images", "same detections", "their largest difference"]
    print(tabulate(rows, columns, tablefmt="github", floatfmt=("", ".1f", "", "", ".1e")))
    if rows and not compared:
        print("Nothing was detected, so nothing was compared: use other images.", file=sys.stderr)
    return 1 if refused else 0


def at_two_sizes(image: torch.Tensor) -> list[torch.Tensor]:
    """``image`` (3, H, W), levels 0 to 255, and the same at three quarters of its size, where that
    makes no side smaller than the 65 pixels that torch.export, ONNX and OpenVINO need."""
    size = [min(side, max(65, side * 3 // 4)) for side in image.shape[1:]]
    return [image, F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]]


def facts(predictor: Predictor) -> dict[str, Any]:
    """What a program needs to know to prepare images and to name what is found."""
    cfg = predictor.cfg
    return {
        "format": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "resize": cfg.INPUT.RESIZE_TEST,
        "classes": predictor.classes,
        "category_ids": predictor.category_ids,
    }


if __name__ == "__main__":
    sys.exit(main())
