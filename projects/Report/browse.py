#!/usr/bin/env python3
"""Draw images with their annotations as training sees them: ``browse.py --help``."""

import argparse
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

import gnws_d2
import gnws_d2.projects.digits  # registers the dataset
from gnws.arguments import parse
from gnws_d2.data import (
    Mapper,
    NamingMapper,
    build_test_augmentation,
    dataset_errors,
    load_train_dataset,
)
from gnws_d2.errors import one_line_errors
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.own_data import data_opts, data_splits, fit_to_data
from gnws_d2.projects.report.images import sheet
from gnws_d2.projects.report.painter import Painter, class_colors

logger = logging.getLogger("gnws_d2.browse")

MIN_DRAWN = 540  # pixels of the longer side; smaller images are drawn larger, to be readable
CELL = 320  # pixels of an image on the sheet


def load(cfg: CfgNode, split: str) -> tuple[Sequence[dict[str, Any]], Any]:
    """The images of a split, and the mapper that makes of each what the model gets."""
    if split == "train":
        return load_train_dataset(cfg), NamingMapper(Mapper(cfg, is_train=True))
    with dataset_errors(cfg.DATASETS.TEST):
        records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    # As for training, because a mapper for evaluation drops the annotations.
    arguments = Mapper.from_config(cfg, is_train=True)
    arguments["augmentations"] = build_test_augmentation(cfg)
    return records, NamingMapper(Mapper(**arguments))


def show(mapped: dict[str, Any], cfg: CfgNode, metadata: Metadata) -> Image.Image:
    """The image of ``mapped``, what a mapper returns, with its objects and labels."""
    rgb = convert_image_to_rgb(mapped["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    painter = Painter(rgb, metadata, max(1.0, MIN_DRAWN / max(rgb.shape[:2])))
    if "sem_seg" in mapped:
        painter.draw_sem_seg(mapped["sem_seg"], 0, painter.ALPHA)
    if "instances" in mapped:
        fields = mapped["instances"].get_fields()
        names = metadata.get("thing_classes")
        classes = fields["gt_classes"].tolist()
        painter.overlay_instances(
            boxes=fields["gt_boxes"],
            masks=fields.get("gt_masks"),
            keypoints=fields.get("gt_keypoints"),
            labels=[names[k] if names else str(k) for k in classes],
            assigned_colors=class_colors(classes),
        )
    return Image.fromarray(painter.output.get_image())


@one_line_errors()
def main(args: argparse.Namespace) -> None:
    setup_logger(name="gnws_d2")
    opts = ["MODEL.DEVICE", "cpu", *data_opts(args, data_splits(args)), *args.opts]
    cfg = fit_to_data(gnws_d2.load_config(args.config_file, opts, [add_acceleration_config]))

    records, mapper = load(cfg, args.split)
    names = cfg.DATASETS.TRAIN if args.split == "train" else cfg.DATASETS.TEST
    metadata = MetadataCatalog.get(names[0])
    seed = max(cfg.SEED, 0)
    chosen = random.Random(seed).sample(range(len(records)), min(args.num, len(records)))
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = []
    for i in tqdm(sorted(chosen), unit="image", disable=None):
        seed_all_rng(seed + i)  # an image is the same however many are drawn
        image = show(mapper(records[i]), cfg, metadata)
        stem = Path(records[i]["file_name"]).stem
        image.save(args.output / f"{i:06}_{stem}.jpg", quality=90)
        drawn.append(image)
    file = args.output / "sheet.jpg"
    sheet(drawn, columns=5, cell=CELL).save(file, quality=88)
    logger.info("%d of %d images, in %s, all on %s", len(drawn), len(records), args.output, file)


if __name__ == "__main__":
    main(parse("browse"))
