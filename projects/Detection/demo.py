#!/usr/bin/env python3
"""Detect on images and write the results.

    demo.py --config-file output/digits/config.yaml --input photos/ more/*.jpg --output found \\
        --opts MODEL.WEIGHTS output/digits/model_final.pth

Inputs are files, folders and globs. The output folder gets each image with boxes, masks and
class names drawn, and detections.json in COCO's form: images, categories, and annotations with a
score. An image that cannot be read is reported and skipped; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import glob
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from tqdm import tqdm

import gnws_d2
from gnws_d2.checkpoint import Checkpointer, Provenance
from gnws_d2.data.resize import build_test_augmentation
from gnws_d2.errors import add_debug_flag, one_line_errors
from gnws_d2.files import atomic_write
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config

logger = logging.getLogger("gnws_d2.demo")

MIN_DRAWN = 480  # pixels of the shorter side; smaller images are drawn larger, to be readable


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a path, or a packaged config's name"
    )
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="files, folders, globs"
    )
    parser.add_argument("--output", default="output/demo", metavar="FOLDER")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, help="lowest score that is shown"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return add_debug_flag(parser).parse_args()


def make_predictor(args: argparse.Namespace) -> DefaultPredictor:
    cfg = gnws_d2.load_config(args.config_file, args.opts, [add_acceleration_config])
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        sys.exit("MODEL.WEIGHTS is empty: add --opts MODEL.WEIGHTS and a trained detector's file.")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.WEIGHTS = ""  # DefaultPredictor would read the file with Detectron2's checkpointer
    predictor = DefaultPredictor(cfg)
    accelerate(predictor.model, cfg)
    (predictor.aug,) = build_test_augmentation(cfg)
    trained = Provenance.read(Checkpointer(predictor.model, cfg=cfg).load(weights))
    if trained.classes and trained.classes != predictor.metadata.get("thing_classes"):
        # The names travel with the weights: the config's dataset may be unknown here.
        predictor.metadata = Metadata(thing_classes=trained.classes)
    return predictor


def find_images(inputs: list[str]) -> Iterator[Path]:
    """The files that ``inputs`` name; a folder stands for the images in it."""
    suffixes = set(Image.registered_extensions())
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        elif path.exists():
            yield path
        else:
            # A glob that matches nothing counts as a file that cannot be read.
            yield from sorted(map(Path, glob.glob(os.path.expanduser(name)))) or [path]


class CocoDetections:
    """Detections of many images in COCO's form, category ids being those of the dataset."""

    def __init__(self, metadata: Any) -> None:
        classes = metadata.get("thing_classes") or []
        to_class = metadata.get("thing_dataset_id_to_contiguous_id")
        self._id_of_class = {c: i for i, c in to_class.items()} if to_class else None
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{"id": self._id(c), "name": name} for c, name in enumerate(classes)]

    def _id(self, index: int) -> int:
        return self._id_of_class[index] if self._id_of_class else index

    def add(self, file: Path, instances: Instances) -> None:
        height, width = instances.image_size
        image_id = len(self.images) + 1
        self.images.append(
            {"id": image_id, "file_name": str(file), "width": width, "height": height}
        )
        for result in instances_to_coco_json(instances, image_id):
            result["id"] = len(self.annotations) + 1
            result["category_id"] = self._id(result["category_id"])
            result["iscrowd"] = 0
            result["area"] = result["bbox"][2] * result["bbox"][3]
            self.annotations.append(result)

    def write(self, file: Path) -> None:
        names = ("images", "annotations", "categories")
        with atomic_write(file) as partial:
            partial.write_text(json.dumps({name: getattr(self, name) for name in names}))


def draw(bgr: np.ndarray, instances: Instances, metadata: Any) -> Image.Image:
    scale = max(1.0, MIN_DRAWN / min(bgr.shape[:2]))
    visualizer = Visualizer(bgr[:, :, ::-1], metadata, scale=scale)
    return Image.fromarray(visualizer.draw_instance_predictions(instances).get_image())


@one_line_errors()
def main() -> int:
    args = parse_args()
    for name in ("gnws_d2", "fvcore", "detectron2"):
        setup_logger(name=name)
    predictor = make_predictor(args)
    metadata = predictor.metadata
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)

    found = CocoDetections(metadata)
    names: Counter[str] = Counter()
    unreadable = 0
    for file in tqdm(list(find_images(args.input)), unit="image", disable=None):
        try:
            bgr = read_image(str(file), format="BGR")
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on bad files
            logger.error("%s cannot be read and is skipped: %s", file, error)
            unreadable += 1
            continue
        instances = predictor(bgr)["instances"].to("cpu")
        found.add(file, instances)
        # Inputs of one name from two folders must not overwrite each other.
        names[file.stem] += 1
        suffix = f"_{names[file.stem]}" if names[file.stem] > 1 else ""
        draw(bgr, instances, metadata).save(output / f"{file.stem}{suffix}.png")
    found.write(output / "detections.json")
    logger.info(
        "%d detections in %d images, in %s", len(found.annotations), len(found.images), output
    )
    if unreadable:
        logger.error("%d images could not be read", unreadable)
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
