"""Datasets named on the command line, as keys of the config, and the default config for them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog

from gnws_d2.errors import DatasetError

from .coco_file import read_coco
from .source import source_of, split_names, split_of

# Two configs each, for boxes and for boxes with masks. A CPU trains the small ones in minutes.
ON_GPU = (
    "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml",
)
ON_CPU = ("Small/faster_rcnn_R_18_FPN_gn_ws.yaml", "Small/mask_rcnn_R_18_FPN_gn_ws.yaml")
ROBOFLOW_FILE = "_annotations.coco.json"


def data_splits(args: argparse.Namespace) -> dict[str, list[str]]:
    """The dataset names for "train", "val" and "test" that the arguments name, absolute.

    Raises:
        DatasetError: a file or folder does not exist or cannot be read, or its layout is unknown.
    """
    named = {"train": args.train, "val": args.val, "test": args.test}
    splits = {split: list(map(resolve, words)) for split, words in named.items()}
    if args.data is not None:
        if splits["train"]:
            raise DatasetError("--data and --train both name training data. Use one of them.")
        for split, names in find_export(args.data).items():
            splits[split] = splits[split] or names
    if not splits["val"]:
        splits["train"], splits["val"] = _split(splits["train"])
    return splits


def _split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The datasets to train on and to validate on. A file whose images cannot be split, such as one
    alone, is trained on as a whole where another file can."""
    parted = {name: s for name in names if (s := source_of(name)) and s.part != "val"}
    if len(parted) > 1:
        parted = {
            name: source
            for name, source in parted.items()
            if source.part or split_names(read_coco(source.file).file_names, "train")
        } or parted
    train = [str(replace(parted[n], part="train")) if n in parted else n for n in names]
    return train, [str(replace(source, part="val")) for source in parted.values()]


def data_opts(
    args: argparse.Namespace, splits: Mapping[str, list[str]], *, eval_only: bool = False
) -> list[str]:
    """KEY VALUE pairs for the config.

    Args:
        splits: see :func:`data_splits`.
        eval_only: only evaluate, on the test images if there are any.
    """
    names = {"TRAIN": splits["train"], "TEST": splits["val"], "FINAL_TEST": splits["test"]}
    if eval_only:
        names = {"TEST": splits["test"] or splits["val"]}
    given = {f"DATASETS.{key}": repr(tuple(value)) for key, value in names.items() if value}
    opts = list(chain(*given.items()))
    if eval_only and opts:
        opts += ["DATASETS.FINAL_TEST", "()"]
    if args.skip_bad_annotations:
        opts += ["DATALOADER.SKIP_BAD_ANNOTATIONS", "True"]
    return opts


def choose_config(names: Sequence[str]) -> str:
    """The packaged config for the training data ``names`` and the device."""
    has_masks = any(read_coco(s.file).has_masks for s in map(source_of, names) if s)
    return (ON_GPU if torch.cuda.is_available() else ON_CPU)[has_masks]


def resolve(word: str) -> str:
    """The dataset name for a word on the command line: a registered name stays, a file gets
    absolute paths, and a folder stands for its only annotation file.

    Raises:
        DatasetError: no such file or dataset.
    """
    source = source_of(word)
    if source is None and word in DatasetCatalog:
        return word
    path = Path(word).expanduser().absolute()
    if path.is_dir():
        files = _annotation_files(path)
        if len(files) != 1:
            raise DatasetError(
                f"{word} has {len(files)} annotation files. Name one: {word}/FILE.json, or use "
                "--data for a folder with several splits."
            )
        return str(files[0])
    if source is None:
        raise DatasetError(
            f"{word!r} is neither a registered dataset nor a COCO annotation file (*.json)."
        )
    folder = source.folder and source.folder.expanduser().absolute()
    source = replace(source, file=source.file.expanduser().absolute(), folder=folder)
    if not source.file.exists():
        raise DatasetError(f"{source.file} does not exist. Check the path.")
    return str(source)


def find_export(folder: Path) -> dict[str, list[str]]:
    """The datasets in a folder that Roboflow, FiftyOne, CVAT or COCO's site exported.

    Returns:
        names by split: "train", and "val" and "test" if they exist.

    Raises:
        DatasetError: the folder has no training annotations, or several files could be.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise DatasetError(f"--data {folder}: no such folder. Name the folder of the export.")
    files = _annotation_files(folder)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        split = split_of(file.stem) or split_of(str(file.parent.relative_to(folder)))
        by_split.setdefault(split or "", []).append(file)
    unnamed = by_split.pop("", [])
    if "train" not in by_split and len(unnamed) == 1:
        by_split["train"] = unnamed
    if "train" not in by_split:
        found = ", ".join(str(f.relative_to(folder)) for f in files) or "no *.json"
        raise DatasetError(
            f"--data {folder}: found {found}, but none of train/{ROBOFLOW_FILE}, "
            "annotations/instances_train*.json or a single *.json. Name the files with --train "
            "and --val."
        )
    return {split: list(map(str, files)) for split, files in by_split.items()}


def _annotation_files(folder: Path) -> list[Path]:
    """Roboflow's files, or the instances in ``annotations``, or any file in the folder."""
    for pattern in (
        *(f"*/{ROBOFLOW_FILE}", ROBOFLOW_FILE),
        *("annotations/instances_*.json", "annotations/*.json", "*.json", "*/*.json"),
    ):
        if files := sorted(folder.glob(pattern)):
            return files
    return []
