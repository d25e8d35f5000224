#!/usr/bin/env python3
"""Export a detector to files that run without Detectron2 and this package: see ``--help``."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch.nn import functional as F

import gnws_d2
from gnws.arguments import parse
from gnws_d2.data import read_image
from gnws_d2.errors import GnwsError, one_line_errors
from gnws_d2.projects.acceleration import add_acceleration_config, pad_to_multiples
from gnws_d2.projects.export import FORMATS, Exporter
from gnws_d2.projects.export.runtime import INPUT_FACTS

COLUMNS = ["file", "MiB", "images", "same detections", "their largest difference"]


def run(args: argparse.Namespace) -> tuple[dict[str, Path], list[GnwsError]]:
    """Export. Returns the file of each format, and why others were refused."""
    for name in ("gnws_d2", "fvcore"):
        setup_logger(name=name)
    if args.config_file and args.config_file.endswith(".py"):
        sys.exit(
            "Export a LazyConfig's model in Python: gnws_d2.projects.export.export(model, ...)"
        )
    predictor = gnws_d2.Predictor(
        args.config_file,
        args.weights,
        opts=[*args.opts, "MODEL.DEVICE", "cpu"],
        add_configs=[add_acceleration_config],
        folded=False,
    )
    if predictor.cfg.INPUT.SIZE_DIVISIBILITY:  # of the keys of Acceleration, this alone counts
        pad_to_multiples(predictor.model, predictor.cfg.INPUT.SIZE_DIVISIBILITY)
    form = "BGR" if predictor.channels == 3 else predictor.input_format
    prepared = [predictor.prepare(read_image(file, form))["image"] for file in args.input]
    images = [image for original in prepared for image in at_two_sizes(original)]
    args.output.mkdir(parents=True, exist_ok=True)
    exporter = Exporter(predictor.model, images, facts(predictor))

    rows, written, refused, compared = [], {}, [], 0
    for name in args.format or list(FORMATS)[:4]:
        file, tolerance = args.output / FORMATS[name].file, FORMATS[name].tolerance
        if args.tolerance is not None:
            tolerance = replace(tolerance, difference=args.tolerance)
        try:
            results = exporter.export(name, file, tolerance)
        except GnwsError as error:
            print(error, file=sys.stderr)
            refused.append(error)
            continue
        written[name] = file
        same, expected = (sum(getattr(r, n) for r in results) for n in ("same", "expected"))
        difference = max(result.difference for result in results)
        parts = [file, file.with_suffix(".bin")]
        size = sum(part.stat().st_size for part in parts if part.exists())
        rows.append([file, size / 2**20, len(results), f"{same} of {expected}", difference])
        compared += same
    print(tabulate(rows, COLUMNS, tablefmt="github", floatfmt=("", ".1f", "", "", ".1e")))
    if rows and not compared:
        print("Nothing was detected, so nothing was compared: use other images.", file=sys.stderr)
    return written, refused


@one_line_errors()
def main(args: argparse.Namespace) -> int:
    return 1 if run(args)[1] else 0


def at_two_sizes(image: torch.Tensor) -> list[torch.Tensor]:
    """``image`` (3, H, W), levels 0 to 255, and the same at three quarters of its size, where that
    makes no side smaller than the 65 pixels that torch.export, ONNX and OpenVINO need."""
    size = [min(side, max(65, side * 3 // 4)) for side in image.shape[1:]]
    return [image, F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]]


def facts(predictor: gnws_d2.Predictor) -> dict[str, Any]:
    """What a program needs to know to prepare images and to name what is found."""
    known = {name: predictor.cfg.INPUT[key] for key, name in INPUT_FACTS.items()}
    known |= {"classes": predictor.classes, "category_ids": predictor.category_ids}
    return {**known, "score_threshold": predictor.suggested_threshold}


if __name__ == "__main__":
    sys.exit(main(parse("export")))
