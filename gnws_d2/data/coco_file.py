"""Reading a COCO annotation file as far as it can be read safely: valid JSON of the right form."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from .errors import DatasetError

EXPORT = "Export it again as COCO JSON."


@dataclass
class CocoFile:
    """The members of a COCO annotation file that detection uses.

    Attributes:
        file: where it was read from.
        images, annotations, categories: as in the file. ``annotations`` is None in a file without
            that member, a test set's.
    """

    file: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]] | None
    categories: list[dict[str, Any]]

    @functools.cached_property
    def class_names(self) -> dict[Any, str]:
        """The names of the categories by id."""
        return {category["id"]: category["name"] for category in self.categories}

    @functools.cached_property
    def used_categories(self) -> dict[str, int]:
        """The ids of the categories that have annotations, by name and in the order of ids.

        Raises:
            DatasetError: two of them share a name.
        """
        ids = (annotation.get("category_id") for annotation in self.annotations or ())
        used = {number for number in ids if isinstance(number, int)}  # others need not be hashable
        found: dict[str, int] = {}
        for number, name in sorted(self.class_names.items()):
            if number not in used:
                continue
            if name in found:
                raise DatasetError(
                    f"{self.file}: categories {found[name]} and {number} are both named {name!r}. "
                    "Rename one, or give their annotations one id."
                )
            found[name] = number
        return found

    @property
    def category_ids(self) -> dict[str, int]:
        """The ids of all categories by name; where two share one, of that with annotations."""
        return {name: number for number, name in self.class_names.items()} | self.used_categories

    @property
    def has_masks(self) -> bool:
        """Whether an object, crowds aside, has a mask."""
        objects = (a for a in self.annotations or () if not a.get("iscrowd"))
        return any(a.get("segmentation") for a in objects)


_kept: dict[tuple, CocoFile] | None = None


@contextmanager
def kept_files() -> Iterator[None]:
    """Read every file once within this context, whose files must not be changed."""
    global _kept
    if _kept is not None:
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def read_coco(file: str | os.PathLike) -> CocoFile:
    """Read a COCO annotation file. Images and annotations are only known to be dicts.

    Raises:
        DatasetError: it is no regular file, no JSON, lacks a member, or its categories are not
            usable.
    """
    if _kept is None or not os.path.isfile(file):
        return _read_coco(file)
    key = state_of(file)
    if key not in _kept:
        _kept[key] = _read_coco(file)
    return _kept[key]


def state_of(file: str | os.PathLike) -> tuple[str, int, int]:
    """What changes when the file is written: its path, time and size."""
    status = os.stat(PathManager.get_local_path(os.fspath(file)))
    return os.fspath(file), status.st_mtime_ns, status.st_size


def _read_coco(file: str | os.PathLike) -> CocoFile:
    content = _read_json(os.fspath(file))
    if not isinstance(content, dict):
        raise DatasetError(
            f"{file} is not a COCO annotation file: it holds a {type(content).__name__} instead of "
            f"images, annotations and categories. {EXPORT}"
        )
    for member in ("images", "categories", "annotations"):
        if member not in content:
            if member == "annotations" and content["images"]:
                continue
            raise DatasetError(
                f"{file} is not a COCO annotation file: {member!r} is missing in it. {EXPORT}"
            )
        entries = content[member]
        if not isinstance(entries, list):
            raise DatasetError(
                f"{file}: {member!r} is a {type(entries).__name__}, not a list. {EXPORT}"
            )
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise DatasetError(f"{file}: {member}[{index}] is {entry!r:.60}. {EXPORT}")
    if not content["images"]:
        raise DatasetError(f"{file} lists no images. {EXPORT}")
    _check_categories(file, content["categories"])
    return CocoFile(
        os.fspath(file), content["images"], content.get("annotations"), content["categories"]
    )


def _read_json(file: str) -> Any:
    try:
        path = PathManager.get_local_path(file)
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would be waited for
            raise DatasetError(f"{file} is not a regular file. Name the annotation file.")
        return json.loads(Path(path).read_bytes(), object_pairs_hook=_members)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{file} does not exist. Put it there, or set DETECTRON2_DATASETS to the folder that "
            "holds Detectron2's datasets."
        ) from error
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error}. Check the file.") from error
    except (ValueError, RecursionError) as error:  # DatasetError is a ValueError
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{file} is not valid JSON ({error}): it is damaged or cut off. Fetch it again."
        ) from error


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):  # Python would take the last one
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r:.60} appears twice in an object")
    return members


def _check_categories(file: str | os.PathLike, categories: list[dict[str, Any]]) -> None:
    if not categories:
        raise DatasetError(f"{file} lists no categories. {EXPORT}")
    for index, category in enumerate(categories):
        name, number = category.get("name"), category.get("id")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise DatasetError(
                f"{file}: categories[{index}] has id {number!r:.60}. Ids are whole numbers from 0."
            )
        if not isinstance(name, str) or not name.strip():
            raise DatasetError(f"{file}: category {number} has name {name!r:.60}. Give it a name.")
    for number, count in Counter(category["id"] for category in categories).items():
        if count > 1:
            names = [c["name"] for c in categories if c["id"] == number]
            raise DatasetError(
                f"{file}: category id {number} is used for {', '.join(map(repr, names))}. Give "
                "each its own id."
            )


def is_id(value: Any) -> bool:
    """Whether ``value`` can be the id of an image or annotation; NumPy holds 64 bits."""
    return isinstance(value, str) or (type(value) is int and -(2**63) <= value < 2**63)


def coco_api(dataset: dict[str, Any]) -> COCO:
    """pycocotools' ``COCO`` of a dataset in memory, without what it prints."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
