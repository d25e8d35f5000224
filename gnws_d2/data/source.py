"""Dataset names that are COCO files: ``ANNOTATIONS.json[=IMAGE_FOLDER][#train|#val]``.

Without ``=IMAGE_FOLDER`` the images are looked for beside the file. ``#train`` and ``#val`` are the
two parts of a fixed split, see :mod:`~gnws_d2.data.split`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import shorten
from .errors import DatasetError

PARTS = ("train", "val")
SUFFIX = ".json"
PROBED_IMAGES = 20  # of a file, to find out where its images are
# The words in the names of files and folders that say which split they hold.
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True)
class Source:
    """A COCO annotation file, the folder of its images, and the part of it that is used.

    Attributes:
        file: the annotation file.
        folder: of the images; None: beside the file, see :func:`image_folder`.
        part: "train" or "val" of the fixed split; "": the whole file.
    """

    file: Path
    folder: Path | None = None
    part: str = ""

    @classmethod
    def parse(cls, name: str) -> Source | None:
        """The source that ``name`` describes; None if it does not look like one."""
        body, _, part = name.rpartition("#")
        if part not in PARTS:
            body, part = name, ""
        file, separator, folder = body.partition(f"{SUFFIX}=")
        if separator:
            return cls(Path(file + SUFFIX), Path(folder), part)
        return cls(Path(body), None, part) if body.lower().endswith(SUFFIX) else None

    def __str__(self) -> str:
        folder = f"={self.folder}" if self.folder else ""
        return f"{self.file}{folder}{f'#{self.part}' if self.part else ''}"

    def absolute(self) -> Source:
        """The same with absolute paths, so that it can be saved in a config."""
        folder = self.folder and self.folder.expanduser().absolute()
        return replace(self, file=self.file.expanduser().absolute(), folder=folder)

    def image_folder(self, file_names: Sequence[str]) -> Path:
        """The folder of the images.

        It is the first where most of the first images exist, of: the file's own folder, ``images``
        in it, ``images`` beside it, and the folders named like the file's split.

        Args:
            file_names: of the annotation file.

        Raises:
            DatasetError: there is none.
        """
        if self.folder is not None:
            return self.folder
        probes = file_names[:PROBED_IMAGES]
        folders = self._candidates()
        found = [sum(os.path.exists(folder / name) for name in probes) for folder in folders]
        if max(found, default=0) == 0:
            first = shorten(probes[0] if probes else "...")
            raise DatasetError(
                f"{self.file}: the images, such as {first}, are in none of "
                f"{', '.join(map(str, folders))}. Name their folder: {self.file}=FOLDER."
            )
        return folders[found.index(max(found))]

    def _candidates(self) -> list[Path]:
        own = self.file.parent
        split = self.file.stem.removeprefix("instances_")
        words = [split, *(word for word in SPLIT_WORDS if SPLIT_WORDS[word] == split_of(split))]
        roots = [own, own / "images", own.parent / "images"]
        named = [root / word for root in (own, *roots[1:], own.parent) for word in words]
        return [f for f in dict.fromkeys([*roots, *named, own.parent]) if f.is_dir()]


def is_source(name: str) -> bool:
    """Whether ``name`` names a COCO file, rather than a dataset that was registered elsewhere."""
    if name in DatasetCatalog:
        return bool(MetadataCatalog.get(name).get("is_source"))
    return Source.parse(name) is not None


def split_of(word: str) -> str | None:
    """The split that a file's or folder's name says: "train", "val", "test" or None."""
    letters = "".join(c if c.isalpha() else " " for c in word.lower()).split()
    return next((SPLIT_WORDS[part] for part in letters if part in SPLIT_WORDS), None)


def resolve(word: str) -> str:
    """The dataset name of a word on the command line: a registered name as it is, a file's with
    absolute paths, a folder's with the only annotation file in it.

    Raises:
        DatasetError: no such file or dataset.
    """
    if word in DatasetCatalog and not is_source(word):
        return word
    path = Path(word).expanduser()
    if path.is_dir():
        files = _annotation_files(path)
        if len(files) != 1:
            raise DatasetError(
                f"{word} has {len(files)} annotation files. Name one: {word}/FILE.json, or use "
                "--data for a folder with several splits."
            )
        return str(Source(files[0]).absolute())
    source = Source.parse(word)
    if source is None:
        raise DatasetError(
            f"{word!r} is neither a registered dataset nor a COCO annotation file (*.json)."
        )
    if not source.file.expanduser().exists():
        raise DatasetError(f"{source.file} does not exist. Check the path.")
    return str(source.absolute())


def find_export(folder: Path) -> dict[str, list[str]]:
    """The dataset names of a folder as Roboflow, CVAT and COCO's site export it.

    Returns:
        names by split: "train", and "val" and "test" if they exist.

    Raises:
        DatasetError: the folder has no training annotations, or more than one file could be.
    """
    if not folder.is_dir():
        raise DatasetError(f"--data {folder}: no such folder. Name the folder of the export.")
    files = _annotation_files(folder)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        word = file.parent.name if file.name == ROBOFLOW_FILE else file.stem
        by_split.setdefault(split_of(word) or "", []).append(file)
    unnamed = by_split.pop("", [])
    if "train" not in by_split and len(unnamed) == 1:
        by_split["train"] = unnamed
    if not by_split.get("train"):
        found = ", ".join(str(f.relative_to(folder)) for f in files) or "no *.json"
        raise DatasetError(
            f"--data {folder}: found {found}, but none of train/{ROBOFLOW_FILE}, "
            "annotations/instances_train*.json or a single *.json. Name the files with --train "
            "and --val."
        )
    return {
        split: [str(Source(file).absolute()) for file in found] for split, found in by_split.items()
    }


def _annotation_files(folder: Path) -> list[Path]:
    """Those of an export: Roboflow's, or the instances in ``annotations``, or any in the folder."""
    for pattern in (
        *(f"{word}/{ROBOFLOW_FILE}" for word in ("*", ".")),
        *("annotations/instances_*.json", "annotations/*.json", "*.json", "*/*.json"),
    ):
        if files := sorted(folder.glob(pattern)):
            return files
    return []
