#!/usr/bin/env python3
"""All steps in one command: make Digits, train a small GN+WS Mask R-CNN on it, evaluate it, draw
what it finds, and print where everything is. ``make demo`` runs this.

The steps are commands that also run alone; each is printed before it runs.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from gnws_d2.errors import one_line_errors
from gnws_d2.projects import digits
from gnws_d2.projects.report import sheet

NUM_IMAGES = 12


def gnws(*words: str | Path) -> None:
    print(f"\n$ {shlex.join(map(str, ['gnws', *words]))}\n", flush=True)
    done = subprocess.run([sys.executable, "-m", "gnws.main", *map(str, words)])
    if done.returncode:
        sys.exit(done.returncode)


def results(output: Path) -> str:
    """A table of the last evaluation's results."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    metrics = [line for line in lines if "bbox/AP" in line][-1]
    columns = ["AP", "AP50", "AP75", "APs", "APm"]
    rows = [[task, *(metrics[f"{task}/{c}"] for c in columns)] for task in ("bbox", "segm")]
    return tabulate(rows, ["task", *columns], tablefmt="github", floatfmt=".1f")


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="Digits/mask_rcnn_R_18_FPN_gn_ws.yaml")
    parser.add_argument("--output", type=Path, default=Path("output/digits"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = parser.parse_args()

    folder, start = digits.make_digits(), time.time()
    gnws("train", "--config-file", args.config_file, "OUTPUT_DIR", args.output, *args.opts)
    minutes = (time.time() - start) / 60
    images, found = sorted((folder / "val").glob("*.png"))[:NUM_IMAGES], args.output / "images"
    weights = args.output / "model_final.pth"
    gnws("predict", "--weights", weights, "--input", *images, "--output", found)
    overview = found.with_suffix(".jpg")
    drawn = [Image.open(file) for file in sorted(found.glob("*.png"))]
    sheet(drawn, columns=4, cell=240).save(overview, quality=85)

    print(f"""
Trained and evaluated in {minutes:.1f} minutes, on {folder}/val:

{results(args.output)}

Files:
  model     {weights}
  images    {overview}, and one by one with detections.json in {found}
  report    {args.output / "report" / "report.html"}
  log       {args.output / "log.txt"}, and for TensorBoard the same folder

Next:
  the same model without Weight Standardization, and with BatchNorm:
    gnws train --config-file Digits/mask_rcnn_R_18_FPN_gn.yaml
    gnws train --config-file Digits/mask_rcnn_R_18_FPN_bn.yaml
  your own images:
    gnws predict --weights {weights} --input FOLDER   # detect in them
    gnws train --data FOLDER   # train on them: docs/own-data.md
  the published detectors on COCO: see README.md""")


if __name__ == "__main__":
    main()
