"""Datasets named on the command line, as keys of the config, and the default config for them."""

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from detectron2.data import DatasetCatalog

from gnws_d2.errors import DatasetError

from . import formats
from .coco_file import read_coco
from .formats import yolo
from .source import Source, source_of, split_names, split_of

logger = logging.getLogger(__name__)
ROBOFLOW_FILE = "_annotations.coco.json"
FEW = 4  # names in an error


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
    if both := [name for name in splits["val"] if name in splits["train"]]:
        logger.warning("%s is named to train and to validate: a part of it validates.", both[0])
        splits["val"] = [name for name in splits["val"] if name not in both]
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
            if source.part or split_names(read_coco(source.file, source.folder).file_names, "train")
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


def resolve(word: str) -> str:
    """The dataset name for a word on the command line: a registered name stays, a file gets
    absolute paths, and a folder stands for the only annotations in it.

    Raises:
        DatasetError: no such file or dataset.
    """
    source = source_of(word)
    if source is None and word in DatasetCatalog:
        return word
    path = Path(word).expanduser().absolute()
    if path.is_dir():
        names = [name for names in _find(path).values() for name in names]
        if len(names) == 1:
            return names[0]
        raise DatasetError(
            f"{word} has {len(names)} annotation files or folders of them ({_few(names, path)}). "
            "Name one, or use --data for a folder with several splits."
        )
    if source is None:
        raise DatasetError(
            f"{word!r} is neither a registered dataset nor a COCO annotation file (*.json), "
            f"nor another file or folder of annotations: {formats.KNOWN}."
        )
    folder = source.folder and source.folder.expanduser().absolute()
    source = replace(source, file=source.file.expanduser().absolute(), folder=folder)
    if not source.file.exists():
        raise DatasetError(f"{source.file} does not exist. Check the path.")
    return str(source)


def find_export(folder: Path) -> dict[str, list[str]]:
    """The datasets in a folder, in the layout of a tool that exports them, or of one annotation
    file or YAML file of YOLO.

    Returns:
        names by split: "train", and "val" and "test" if they exist.

    Raises:
        DatasetError: the folder has no training annotations, or several files could be.
    """
    folder = folder.expanduser().absolute()
    if folder.is_file() and folder.suffix not in (".yaml", ".yml"):
        return {"train": [resolve(str(folder))]}
    if not folder.exists():
        raise DatasetError(f"--data {folder}: no such folder. Name the folder of the export.")
    by_split = _find(folder)
    unnamed = by_split.pop("", [])
    if "train" not in by_split and len(unnamed) == 1:
        by_split["train"] = unnamed
    elif "train" in by_split and unnamed:
        logger.warning("%s: %s is in no split and not used.", folder, _few(unnamed, folder))
    if "train" not in by_split:
        names = [*unnamed, *(name for names in by_split.values() for name in names)]
        found = _few(names, folder) or f"no annotations, but {formats.contents(folder)}"
        raise DatasetError(
            f"--data {folder}: found {found}. Needed are {formats.KNOWN}: train/ and val/, or one "
            "file or folder of annotations. Name them with --train and --val."
        )
    return by_split


def _few(names: Sequence[str], folder: Path) -> str:
    """The first names, relative to ``folder``."""
    inside = [name.removeprefix(f"{folder}/") for name in names[:FEW]]
    return ", ".join(inside + ["..."] * (len(names) > FEW))


def _find(folder: Path) -> dict[str, list[str]]:
    """The datasets in a folder, or that a YAML file names, by split or "": those of COCO, or else
    of the format with most annotations."""
    if folder.is_file():
        return yolo.listed_splits(folder.parent, folder)
    others = formats.find(folder)
    in_others = set(chain(*(n for k in formats.JSON_KINDS for n in others.get(k, {}).values())))
    coco: dict[str, list[str]] = {}
    for file in _annotation_files(folder):
        if not {str(file), f"{file.parent}/"} & in_others and (not others or _objects([str(file)])):
            split = split_of(file.stem) or split_of(str(file.parent.relative_to(folder)))
            coco.setdefault(split or "", []).append(str(file))
    if not others and not coco and yolo.has_labels(folder):
        return {"": [str(Source(folder))]}
    if coco and others:
        logger.warning("%s: COCO JSON is used, and not %s.", folder, ", ".join(others))
    if coco or not others:
        return coco
    if len(others) == 1:
        return next(iter(others.values()))
    return max(others.values(), key=lambda splits: _objects(chain(*splits.values())))


def _objects(names: Iterable[str]) -> int:
    """How many annotations the files have that can be read, and 1."""
    count = 0
    for source in map(source_of, names):
        with suppress(DatasetError):
            count += len(read_coco(source.file).annotations or ()) + 1
    return count


def _annotation_files(folder: Path) -> list[Path]:
    """Roboflow's files, or the instances in ``annotations``, or any file in the folder."""
    for pattern in (
        *(f"*/{ROBOFLOW_FILE}", ROBOFLOW_FILE),
        *("annotations/instances_*.json", "annotations/*.json", "*.json", "*/*.json"),
    ):
        if files := sorted(folder.glob(pattern)):
            return files
    return []
