#!/usr/bin/env python3
"""Check COCO datasets before training: decode every image, check every annotation."""

import argparse
import contextlib
import hashlib
import json
import logging
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

import gnws_d2
import gnws_d2.projects.digits  # registers the datasets
from gnws.arguments import parse
from gnws_d2.config import DATASET_KEYS, dataset_names
from gnws_d2.data import read_image
from gnws_d2.errors import DatasetError, one_line_errors
from gnws_d2.files import atomic_write
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.own_data.arguments import data_opts, data_splits, resolve
from gnws_d2.projects.own_data.check import Problem, check_coco, header_problem
from gnws_d2.projects.own_data.coco_file import kept_files, read_coco
from gnws_d2.projects.own_data.fit import fit_to_data
from gnws_d2.projects.own_data.image_files import ImageFiles
from gnws_d2.projects.own_data.source import source_of
from gnws_d2.projects.own_data.summary import data_summary

logger = logging.getLogger("gnws_d2.check_data")

MOST_LISTED = 10  # problems of a file; --output has all


def check(name: str, by_content: defaultdict[str, set[str]]) -> list[Problem]:
    """The problems of a dataset's file. ``by_content`` collects its images by their SHA-256."""
    if source := source_of(name):
        coco = read_coco(source.file, source.folder)
        images = source.images(coco.file_names)
    else:
        metadata = MetadataCatalog.get(name)
        if "coco" not in metadata.get("evaluator_type", "") or not metadata.get("json_file"):
            raise DatasetError(f"{name!r} is not a COCO dataset. Name a *.json file.")
        if not Path(metadata.json_file).exists():
            with contextlib.suppress(FileNotFoundError):
                DatasetCatalog.get(name)  # some make their file then, such as Digits
        coco, images = read_coco(metadata.json_file), ImageFiles(Path(metadata.image_root))
    with tqdm(total=len(coco.images), unit="image", disable=None, leave=False) as bar:

        def decode(file: Path, image: dict[str, Any]) -> str:
            bar.update()
            if reason := header_problem(file, image):
                return reason
            try:
                read_image(file, "BGR")
            except DatasetError as error:
                return str(error)
            by_content[hashlib.sha256(file.read_bytes()).hexdigest()].add(str(file))
            return ""

        _, problems = check_coco(coco, images, image_problem=decode)
    if coco.annotations and all(annotation.get("iscrowd") for annotation in coco.annotations):
        found = f"all {len(coco.annotations)} annotations are crowds, which are not trained on"
        problems.append(Problem(f"{found}. Set iscrowd to 0", None))
    for problem in problems[:MOST_LISTED]:
        logger.error("%s: %s", coco.file, problem.reason)
    if len(problems) > MOST_LISTED:
        logger.error("%s: %d more", coco.file, len(problems) - MOST_LISTED)
    return problems


def _whole(name: str) -> str:
    source = source_of(name)
    return str(replace(source, part="")) if source else name


@one_line_errors()
def main(args: argparse.Namespace) -> int:
    setup_logger(name="gnws_d2")
    splits = data_splits(args)
    splits["train"] += map(resolve, args.sources)
    if not any(splits.values()):
        raise DatasetError("no data is named. Add --data FOLDER, --train SOURCE or a file.")
    opts = [word for key in DATASET_KEYS for word in (key, "()")]  # not those of the config
    opts += [*data_opts(args, splits), "DATALOADER.SKIP_BAD_ANNOTATIONS", "True"]
    opts += ["MODEL.DEVICE", "cpu"]  # which is not used: no warning that there is no GPU
    cfg = gnws_d2.load_config(args.config_file, [*opts, *args.opts], [add_acceleration_config])
    names = dataset_names(cfg)
    by_content: defaultdict[str, set[str]] = defaultdict(set)
    with kept_files():
        # Both parts of a split are in one file, which is checked once.
        found = {name: check(name, by_content) for name in dict.fromkeys(map(_whole, names))}
        cfg = fit_to_data(cfg)  # logs the table
    shared = sorted(sorted(files) for files in by_content.values() if len(files) > 1)
    if shared:
        such = " and ".join(shared[0][:2])
        logger.warning("%d images exist more than once, such as %s", len(shared), such)
    bad = sum(map(len, found.values()))
    if args.output is not None:
        report = {
            "problems": {file: list(map(asdict, problems)) for file, problems in found.items()},
            "same_content": shared,
            "summary": {name: data_summary(name, cfg) for name in names},
        }
        with atomic_write(args.output) as partial:
            partial.write_text(json.dumps(report, indent=1), encoding="utf-8")
        logger.info("%s lists everything.", args.output)
    logger.info("%d images and annotations would train or evaluate wrong.", bad)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(parse("check-data")))
