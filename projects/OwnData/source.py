"""Dataset names that are annotations: ``ANNOTATIONS[=IMAGE_FOLDER][#train|#val]``.

``ANNOTATIONS`` is a file whose name ends in one of SUFFIXES, or a folder whose name ends in "/".
Without ``=IMAGE_FOLDER`` the images are looked for beside it. ``#train`` and ``#val`` are the
two parts of a fixed split, see :func:`split_names`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from gnws_d2.errors import DatasetError, shorten

from .image_files import ImageFiles, find_images

PARTS = ("train", "val")
SUFFIXES = (".json", ".xml", ".csv", ".txt")
VALIDATION_SHARE = 0.2
ANNOTATION_FOLDERS = ("labels", "annotations", "masks")  # beside "images"
SPLIT_FIX = (
    "It is one part of the automatic split of a file. Add images, or name a file for validation "
    "(--val, DATASETS.TEST) and train on the whole of this one"
)
SPLITS = ("train", "val", "test")
# Words in the names of files and folders, and the split that they stand for.
SPLIT_WORDS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}


@dataclass(frozen=True)
class Source:
    """Annotations, the folder of their images, and the part of them that is used.

    Attributes:
        file: the annotation file, or a folder of them.
        folder: the folder of the images; None: beside the file, see :meth:`images`.
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
        ends = "|".join(map(re.escape, (*SUFFIXES, "/")))
        if with_folder := re.fullmatch(rf"(.*?(?:{ends}))=(.*)", body, re.I | re.S):
            return cls(Path(with_folder[1]), Path(with_folder[2]), part)
        return cls(Path(body), None, part) if body.lower().endswith((*SUFFIXES, "/")) else None

    def __str__(self) -> str:
        folder = f"={self.folder}" if self.folder else ""
        return f"{self.path}{folder}{f'#{self.part}' if self.part else ''}"

    @property
    def is_folder(self) -> bool:
        """Whether the annotations are a folder, as the name says."""
        return self.file.suffix.lower() not in SUFFIXES

    @property
    def home(self) -> Path:
        """The folder that the annotations are, or are in."""
        return self.file if self.is_folder else self.file.parent

    @property
    def path(self) -> str:
        """The file, or the folder with "/"."""
        return f"{self.file}{'/' if self.is_folder else ''}"

    def images(self, file_names: Sequence[str]) -> ImageFiles:
        """Find the images, see :func:`find_images`: in ``folder``, or else in the file's own
        folder, ``images`` in it, ``images`` beside it, folders named after the file's split, the
        folder above, and ``data``.

        Args:
            file_names: the images that the annotation file lists.

        Raises:
            DatasetError: none of the folders contains an image.
        """
        if not file_names:
            raise DatasetError(f"{self.file}: none of its images has a file_name. Add them.")
        folders = self.folders()
        try:
            found = find_images(file_names, folders, self.home)
        except DatasetError as error:
            raise DatasetError(f"{self.file}: {error}: {self.path}=FOLDER.") from None
        if found is not None:
            return found
        own = self.folder or self.home
        places = own, own / "images", own.parent
        entries = [entry for place in places for entry in sorted(place.glob("*"))]
        names = [entry.name for entry in entries]
        near = difflib.get_close_matches(Path(file_names[0]).name, names, 1, 0.4)
        there = f" ({shorten(near[0])} is there)" if near else ""
        inside = (e for e in entries if e.is_dir() and find_images(file_names, [e]))
        raise DatasetError(
            f"{self.file}: the images, such as {shorten(file_names[0])}, are in none of "
            f"{', '.join(map(str, folders))}{there}. Name their folder: "
            f"{self.path}={next(inside, 'FOLDER')}."
        )

    def folders(self) -> list[Path]:
        """The folders that may hold the images, the likeliest first."""
        if self.folder is not None:
            return [self.folder]
        own = self.home
        split = self.file.stem.removeprefix("instances_")
        words = [split, *(word for word in SPLIT_WORDS if SPLIT_WORDS[word] == split_of(split))]
        roots = [own, own / "images", own.parent / "images"]
        named = [root / word for root in (own, *roots[1:], own.parent) for word in words]
        other = [swapped(own, ANNOTATION_FOLDERS, "images")]
        if self.file.suffix.lower() != SUFFIXES[0]:  # such as JPEGImages of VOC
            near = own.parents[1] if own.parent.name == "ImageSets" else own.parent
            other += sorted(f for f in near.glob("*") if "image" in f.name.lower())
        folders = [*roots, *named, *other, own.parent, own / "data"]
        if self.is_folder and is_mask_folder(own):
            # Masks may have the names of their images, which annotations have beside them.
            folders.sort(key=lambda f: f == own and not any(map(Source.parse, os.listdir(own))))
        return [f for f in dict.fromkeys(folders) if f.is_dir()]


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder, or that above one of a split, has "mask" in its name."""
    named = folder.parent if folder.name.lower() in SPLIT_WORDS else folder
    return "mask" in named.name.lower()


def swapped(path: Path, words: Collection[str], new: str) -> Path:
    """``path`` with the last part that is one of ``words`` replaced by ``new``."""
    parts = list(path.parts)
    at = [index for index, part in enumerate(parts) if part.lower() in words]
    return Path(*parts[: at[-1]], new, *parts[at[-1] + 1 :]) if at else path


def source_of(name: str) -> Source | None:
    """The source that a dataset's name describes; None if the dataset was registered elsewhere."""
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("is_source"):
        return None
    return Source.parse(name)


def is_source(name: str) -> bool:
    """Whether ``name`` names annotations, not a dataset that was registered elsewhere."""
    return source_of(name) is not None


def short_name(dataset_name: str) -> str:
    """The name of a dataset for people: of a source, the last two parts of its path and its part
    of the split; otherwise the name itself."""
    source = Source.parse(dataset_name)
    if source is None:
        return dataset_name
    part = f" ({source.part})" if source.part else ""
    return "/".join((*source.file.parts[-2:-1], source.file.name)) + part


def split_of(word: str) -> str | None:
    """The split that the name of a file or folder contains: "train", "val", "test" or None."""
    letters = "".join(c if c.isalpha() else " " for c in word.lower()).split()
    return next((SPLIT_WORDS[part] for part in letters if part in SPLIT_WORDS), None)


def split_names(file_names: Sequence[str], part: str, annotated: Collection[str] = ()) -> set[str]:
    """The ``file_names`` that are in ``part``: "train", or "val" (a fifth, at least one).

    The names are ordered by their SHA-256, and validation takes the first. The split therefore does
    not depend on the order of the file, and a new image moves few others. Roboflow's augmented
    copies of an image, ``NAME.rf.HASH.jpg``, stay together. Where one part would have no object
    though two images have some, it also gets the first of these for validation, or the last for
    training.

    Args:
        annotated: those that have objects.
    """
    ordered = sorted(set(file_names), key=lambda name: (_order(name), name))
    wanted = max(1, round(VALIDATION_SHARE * len(ordered)))
    validation: set[str] = set()
    groups = [set(group) for _, group in groupby(ordered, _order)]
    for group in groups:
        if len(validation) >= wanted:
            break
        validation |= group
    with_objects = [group for group in groups if not group.isdisjoint(annotated)]
    if len(with_objects) > 1:
        if validation.isdisjoint(annotated):
            validation |= with_objects[0]
        elif validation.issuperset(annotated):
            validation -= with_objects[-1]
    return validation if part == "val" else set(ordered) - validation


def _order(name: str) -> str:
    stem = name.replace("\\", "/").partition(".rf.")[0]
    return hashlib.sha256(stem.encode(errors="surrogatepass")).hexdigest()
