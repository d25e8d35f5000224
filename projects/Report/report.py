#!/usr/bin/env python3
"""Write the report of a finished training or evaluation again: ``report.py --help``."""

from __future__ import annotations

import argparse
import sys

from detectron2.utils.logger import setup_logger
from gnws.arguments import parse

import gnws_d2
from gnws_d2.engine import silence_upstream
from gnws_d2.errors import one_line_errors
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.own_data import fit_to_data
from gnws_d2.projects.report import report_run


@one_line_errors()
def main(args: argparse.Namespace) -> None:
    config = args.output_dir / "config.yaml"
    if not config.is_file():
        sys.exit(f"error: {config} does not exist. Name the OUTPUT_DIR of a training.")
    silence_upstream()
    setup_logger(name="gnws_d2")
    opts = ["OUTPUT_DIR", str(args.output_dir), *args.opts]
    cfg = fit_to_data(gnws_d2.load_config(config, opts, [add_acceleration_config]))
    report_run(cfg, args.weights, images=args.images)


if __name__ == "__main__":
    main(parse("report"))
