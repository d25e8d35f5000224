"""Command-line arguments that the programs of this folder share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gnws_d2.data.errors import DatasetError
from gnws_d2.data.source import Source, find_export, is_source, resolve

SOURCE = (
    "ANNOTATIONS.json[=IMAGE_FOLDER][#train|#val], a folder with one annotation file, or the name "
    "of a registered dataset"
)


def program_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=formatter)


def add_model_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--config-file`` and ``--weights``, which name a trained detector."""
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="a path, or a packaged config's name; by default the config that the weights carry",
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="a trained detector's file")
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--data``, ``--train``, ``--val``, ``--test`` and ``--skip-bad-annotations``."""
    group = parser.add_argument_group(
        "data",
        "COCO annotation files and their images. Without --val, a fixed fifth of the training "
        "images validates.",
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="an export of Roboflow, CVAT or COCO: train/_annotations.coco.json and valid/, "
        "annotations/instances_*.json and images/, or one *.json and its images",
    )
    for split, use in (
        ("train", "train on"),
        ("val", "evaluate on while training"),
        ("test", "evaluate on once, after training"),
    ):
        group.add_argument(
            f"--{split}",
            action="append",
            default=[],
            metavar="SOURCE",
            help=f"{use} this: {SOURCE}; repeatable",
        )
    group.add_argument(
        "--skip-bad-annotations",
        action="store_true",
        help="leave out images and annotations that would train wrong, instead of refusing the "
        "data; OUTPUT_DIR/skipped_annotations.json lists them",
    )
    return parser


def data_splits(args: argparse.Namespace) -> dict[str, list[str]]:
    """The dataset names for "train", "val" and "test" that the arguments name, absolute.

    Raises:
        DatasetError: a file or folder does not exist, or its form is unknown.
    """
    splits = {
        split: [resolve(word) for word in getattr(args, split)]
        for split in ("train", "val", "test")
    }
    if args.data is not None:
        if splits["train"]:
            raise DatasetError("--data and --train both name training data. Use one of them.")
        for split, names in find_export(args.data).items():
            splits[split] = splits[split] or names
    if not splits["val"]:
        names, splits["train"] = splits["train"], []
        for name in names:
            source = Source.parse(name) if is_source(name) else None
            if source and source.part != "val":
                name = str(replace(source, part="train"))
                splits["val"].append(str(replace(source, part="val")))
            splits["train"].append(name)
    return splits


def data_opts(
    args: argparse.Namespace, splits: Mapping[str, list[str]], *, eval_only: bool = False
) -> list[str]:
    """KEY VALUE pairs for the config.

    Args:
        splits: see :func:`data_splits`.
        eval_only: evaluate only, and the test images in place of the validation images if both are
            named.
    """
    names = {"TRAIN": splits["train"], "TEST": splits["val"], "FINAL_TEST": splits["test"]}
    if eval_only:
        names = {"TEST": splits["test"] or splits["val"]}
    opts = [
        word
        for key, value in names.items()
        if value
        for word in (f"DATASETS.{key}", repr(tuple(value)))
    ]
    if eval_only and opts:
        opts += ["DATASETS.FINAL_TEST", "()"]
    if args.skip_bad_annotations:
        opts += ["DATALOADER.SKIP_BAD_ANNOTATIONS", "True"]
    return opts
