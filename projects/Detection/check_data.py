#!/usr/bin/env python3
"""Check COCO datasets before training: every image is decoded, every annotation looked at.

    check_data.py --data export/
    check_data.py --train a.json=images/ --val b.json=images/ --config-file ... --output bad.json
    check_data.py my.json

What would train or evaluate wrong is listed, and the exit code is then 1. The rest is summarized: a
table of objects by class and size, as the config's input size and anchors see them, and the images
that two datasets share, by content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

import gnws_d2
from gnws_d2.config import DATASET_KEYS, dataset_names
from gnws_d2.data import fit_to_data
from gnws_d2.data.catalog import is_coco, register_source
from gnws_d2.data.coco_check import Problem, check_coco, header_problem
from gnws_d2.data.coco_file import kept_files, read_coco
from gnws_d2.data.errors import DatasetError
from gnws_d2.data.images import ImageError, read_image
from gnws_d2.data.source import is_source, resolve
from gnws_d2.data.summary import data_summary
from gnws_d2.engine.console import silence_upstream
from gnws_d2.errors import add_debug_flag, one_line_errors
from gnws_d2.files import atomic_write
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.detection.data_arguments import (
    add_data_arguments,
    data_opts,
    data_splits,
    program_parser,
)

logger = logging.getLogger("gnws_d2.check_data")

MOST_LISTED = 10  # problems of a file; --output has all


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = program_parser(__doc__)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="files to check")
    add_data_arguments(parser)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="whose input size and anchors the table shows; Detectron2's defaults without",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON of all that was found")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return add_debug_flag(parser).parse_args(words)


def check(name: str, digests: dict[str, str]) -> list[Problem]:
    """The problems of a dataset's file; ``digests`` gets those of the content of its images."""
    if is_source(name):
        register_source(name)
    metadata = MetadataCatalog.get(name)
    if name not in DatasetCatalog or not is_coco(name):
        raise DatasetError(f"{name!r} is not a COCO dataset. Name a *.json file.")
    coco = read_coco(metadata.json_file)
    with tqdm(total=len(coco.images), unit="image", disable=None, leave=False) as bar:

        def decode(file: Path, image: dict[str, Any]) -> str:
            bar.update()
            if reason := header_problem(file, image):
                return reason
            try:
                read_image(file, "BGR")
            except ImageError as error:
                return str(error)
            digests[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
            return ""

        problems = check_coco(coco, Path(metadata.image_root), image_problem=decode).problems
    for problem in problems[:MOST_LISTED]:
        logger.error("%s: %s", metadata.json_file, problem.reason)
    if len(problems) > MOST_LISTED:
        logger.error("%s: %d more", metadata.json_file, len(problems) - MOST_LISTED)
    return problems


def shared_content(digests: dict[str, str]) -> list[list[str]]:
    """Groups of image files of one content, of different annotation files or of one."""
    files: dict[str, list[str]] = {}
    for file, digest in sorted(digests.items()):
        files.setdefault(digest, []).append(file)
    return sorted(group for group in files.values() if len(group) > 1)


@one_line_errors()
def main(words: list[str] | None = None) -> int:
    args = parse_args(words)
    silence_upstream()
    setup_logger(name="gnws_d2")
    splits = data_splits(args)
    splits["train"] += map(resolve, args.sources)
    if not any(splits.values()):
        raise DatasetError("no data is named. Add --data FOLDER, --train SOURCE or a file.")
    opts = [word for key in DATASET_KEYS for word in (key, "()")]  # not those of the config
    opts += [*data_opts(args, splits), "DATALOADER.SKIP_BAD_ANNOTATIONS", "True"]
    cfg = gnws_d2.load_config(args.config_file, [*opts, *args.opts], [add_acceleration_config])
    names = dataset_names(cfg)
    found: dict[str, list[Problem]] = {}
    digests: dict[str, str] = {}
    with kept_files():
        for name in names:
            file = name.partition("#")[0]
            if file not in found:  # both parts of a split are in one file
                found[file] = check(name, digests)
        cfg = fit_to_data(cfg)  # logs the table
    shared = shared_content(digests)
    if shared:
        logger.warning(
            "%d images exist more than once, such as %s", len(shared), " and ".join(shared[0][:2])
        )
    bad = sum(map(len, found.values()))
    if args.output is not None:
        report = {
            "problems": {f: [asdict(p) for p in problems] for f, problems in found.items()},
            "same_content": shared,
            "summary": {name: data_summary(name, cfg) for name in names},
        }
        with atomic_write(args.output) as partial:
            partial.write_text(json.dumps(report, indent=1), encoding="utf-8")
        logger.info("%s has all that was found.", args.output)
    logger.info("%d images and annotations would train or evaluate wrong.", bad)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
