#!/usr/bin/env python3
"""Write the report of a finished training or evaluation again.

    report.py --output-dir output/digits
    report.py --output-dir output/digits --weights output/digits/model_best.pth

It reads config.yaml, metrics.json and inference/coco_instances_results.json of the folder and
writes report/report.html, one page that needs no other file, with its plots and images beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

import gnws_d2
from gnws_d2.data import fit_to_data
from gnws_d2.engine.console import silence_upstream
from gnws_d2.errors import add_debug_flag, one_line_errors
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.detection.data_arguments import program_parser
from gnws_d2.report.run import report_run


@one_line_errors()
def main() -> None:
    parser = program_parser(__doc__)
    parser.add_argument("--output-dir", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="what was evaluated; the last checkpoint"
    )
    parser.add_argument(
        "--images", type=int, default=3, help="how many of the worst, the best and random images"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = add_debug_flag(parser).parse_args()
    config = args.output_dir / "config.yaml"
    if not config.is_file():
        sys.exit(f"error: {config} does not exist. Name the OUTPUT_DIR of a training.")
    silence_upstream()
    setup_logger(name="gnws_d2")
    opts = ["OUTPUT_DIR", str(args.output_dir), *args.opts]
    cfg = fit_to_data(gnws_d2.load_config(config, opts, [add_acceleration_config]))
    report_run(cfg, args.weights, images=args.images)


if __name__ == "__main__":
    main()
