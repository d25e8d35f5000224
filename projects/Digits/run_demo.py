#!/usr/bin/env python3
"""All steps in one command: make Digits, train a small GN+WS Mask R-CNN on it, evaluate it, draw
what it finds, and print where everything is. ``make demo`` runs this.

Each step is a command that also runs alone; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from gnws_d2.errors import add_debug_flag, one_line_errors
from gnws_d2.projects import digits
from gnws_d2.projects.report import sheet

HERE = Path(__file__).parent
NUM_IMAGES = 12


def run(*words: str | Path) -> None:
    print(f"\n$ {shlex.join(map(str, ['python', *words]))}\n", flush=True)
    done = subprocess.run([sys.executable, *map(str, words)])
    if done.returncode:
        sys.exit(done.returncode)


def results(output: Path) -> dict[str, float]:
    """The evaluation's results, from the last line of the log that has them."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [line for line in lines if "bbox/AP" in line][-1]


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="Digits/mask_rcnn_R_18_FPN_gn_ws.yaml")
    parser.add_argument("--output", type=Path, default=Path("output/digits"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = add_debug_flag(parser).parse_args()

    folder = digits.make_digits()
    start = time.time()
    run(
        HERE / "train_net.py",
        *("--config-file", args.config_file),
        *("OUTPUT_DIR", args.output, *args.opts),
    )
    minutes = (time.time() - start) / 60
    images = sorted((folder / "val").glob("*.png"))[:NUM_IMAGES]
    found = args.output / "images"
    run(
        HERE / "demo.py",
        *("--config-file", args.output / "config.yaml"),
        *("--input", *images),
        *("--output", found),
        *("--opts", "MODEL.WEIGHTS", args.output / "model_final.pth"),
    )

    overview = found.with_suffix(".jpg")
    drawn = [Image.open(file) for file in sorted(found.glob("*.png"))]
    sheet(drawn, columns=4, cell=240).save(overview, quality=85)
    metrics = results(args.output)
    columns = ["AP", "AP50", "AP75", "APs", "APm"]
    rows = [[task, *(metrics[f"{task}/{c}"] for c in columns)] for task in ("bbox", "segm")]
    print(f"\nTrained and evaluated in {minutes:.1f} minutes, on {folder}/val:\n")
    print(tabulate(rows, ["task", *columns], tablefmt="github", floatfmt=".1f"))
    print(f"""
Files:
  model     {args.output / "model_final.pth"}
  config    {args.output / "config.yaml"}
  images    {overview}, and one by one with detections.json in {found}
  report    {args.output / "report" / "report.html"}
  log       {args.output / "log.txt"}, and for TensorBoard the same folder

Next:
  the same model without Weight Standardization, and with BatchNorm:
    python {HERE}/train_net.py --config-file Digits/mask_rcnn_R_18_FPN_gn.yaml
    python {HERE}/train_net.py --config-file Digits/mask_rcnn_R_18_FPN_bn.yaml
  your own images:
    gnws predict --weights {args.output / "model_final.pth"} --input FOLDER   # detect in them
    gnws train --data FOLDER   # train on them: docs/own-data.md
  the published detectors on COCO: see README.md""")


if __name__ == "__main__":
    main()
