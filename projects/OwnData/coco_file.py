"""Read annotations: COCO files, and what :mod:`~.formats` converts to their members."""

import functools
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from gnws_d2.errors import DatasetError

from .source import SUFFIXES, Source


@dataclass
class CocoFile:
    """The members of a COCO annotation file that detection uses.

    Attributes:
        file: the path of the file or folder that it was read from.
        images, annotations, categories: as in the file. ``annotations`` is None where the file
            lacks them, as those of test sets do.
        format: that of the file; "COCO" also for a changed copy.
    """

    file: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]] | None
    categories: list[dict[str, Any]]
    format: str = "COCO"

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
        used = {number for number in ids if isinstance(number, int)}  # others may be unhashable
        found: dict[str, int] = {}
        for number, name in sorted(self.class_names.items()):
            if number in used and found.setdefault(name, number) != number:
                raise DatasetError(
                    f"{self.file}: categories {found[name]} and {number} are both named {name!r}. "
                    "Rename one, or give their annotations one id."
                )
        return found

    @property
    def category_ids(self) -> dict[str, int]:
        """The ids of all categories by name; if two share a name, that of the used one."""
        return {name: number for number, name in self.class_names.items()} | self.used_categories

    @property
    def file_names(self) -> list[str]:
        """The names of image files that can be used as a path."""
        return list(filter(is_file_name, (image.get("file_name") for image in self.images)))

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The annotations of a checked file that are trained on and scored."""
        return list(filter(is_object, self.annotations or ()))

    @property
    def has_masks(self) -> bool:
        """Whether an object has a mask; crowds do not count."""
        return any(a.get("segmentation") and not a.get("iscrowd") for a in self.annotations or ())


def is_object(annotation: Mapping[str, Any]) -> bool:
    """Whether a checked annotation is trained on: no crowd, and its box has width and height."""
    return not annotation.get("iscrowd") and min(annotation["bbox"][2:]) > 0


def is_file_name(name: Any) -> bool:
    """Whether a file_name can be used as a path."""
    return isinstance(name, str) and bool(name) and "\0" not in name


def class_ids(
    classes: Iterable[str], *known: Mapping[str, int], taken: Iterable[int] = ()
) -> dict[str, int]:
    """Give each class an id: the one in the first of ``known`` that has the class, or a new one if
    there is none or an earlier class has it.

    Args:
        known: ids by class name.
        taken: further ids that a new one must not be.
    """
    highest = max([0, *taken, *(number for ids in known for number in ids.values())])
    found: dict[str, int] = {}
    for name in classes:
        number = next((ids[name] for ids in known if name in ids), None)
        if number is None or number in found.values():
            highest = number = highest + 1
        found[name] = number
    return found


_kept: dict[Hashable, Any] | None = None


@contextmanager
def kept_files() -> Iterator[None]:
    """Read every file only once within this context. The files must not change meanwhile."""
    global _kept
    outer = _kept
    _kept = {} if outer is None else outer
    try:
        yield
    finally:
        _kept = outer


def kept(key: Hashable, make: Callable[[], Any]) -> Any:
    """``make()``, or within :func:`kept_files` what it returned the first time for this ``key``."""
    known = {} if _kept is None else _kept
    if key not in known:
        known[key] = make()
    return known[key]


def read_coco(file: str | os.PathLike, folder: Path | None = None) -> CocoFile:
    """Read a COCO annotation file, or a file or folder of another format. Images and annotations
    are only checked to be dicts.

    Args:
        folder: that of the images, see :class:`~.source.Source`; some formats need their sizes.

    Raises:
        DatasetError: it is not a regular file or folder, or damaged, lacks a member, or its
            categories cannot be used.
    """
    source = Source(Path(file), folder)
    return kept(source, lambda: _read(os.fspath(file), source))


def _read(path: str, source: Source) -> CocoFile:
    from . import formats  # which import this module

    if source.file.suffix.lower() in SUFFIXES[1:] or source.file.is_dir():
        return formats.read(source)
    content = read_json(path)
    if not (fault := _fault(content)):
        return CocoFile(path, content["images"], content.get("annotations"), content["categories"])
    if coco := formats.read_other_json(source, content):
        return coco
    raise DatasetError(
        f"{path} is not a COCO annotation file: {fault}. Correct it, or export it again as "
        "COCO JSON."
    )


def _fault(content: Any) -> str:
    """What is wrong with the members of a file and its categories, or ""."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, not images, annotations and categories"
    for member in ("images", "categories", "annotations"):
        if member not in content and member != "annotations":
            return f"{member!r} is missing in it"
        entries = content.get(member, [])
        if not isinstance(entries, list):
            return f"{member!r} is a {type(entries).__name__}, not a list"
        # A file of background images has no annotations, and no need of categories.
        if not entries and (member == "images" or content.get("annotations")):
            return f"it lists no {member}"
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                return f"{member}[{index}] is {entry!r:.60}"
    names: dict[int, str] = {}
    for index, category in enumerate(content["categories"]):
        name, number = category.get("name"), category.get("id")
        if type(number) is not int or number < 0:
            return f"categories[{index}] has id {number!r:.60}, not a whole number from 0"
        if not isinstance(name, str) or not name.strip():
            return f"category {number} has name {name!r:.60}"
        if number in names:
            return f"category id {number} is used for {names[number]!r}, {name!r}"
        names[number] = name
    return ""


def read_json(file: str | os.PathLike) -> Any:
    """The content of a JSON file. A DatasetError says what is wrong with it."""
    try:
        path = PathManager.get_local_path(os.fspath(file))
        if stat.S_ISREG(os.stat(path).st_mode):  # reading a FIFO would block
            return json.loads(Path(path).read_bytes(), object_pairs_hook=_members)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{file} does not exist. Put it there, or set DETECTRON2_DATASETS to the folder that "
            "holds Detectron2's datasets."
        ) from error
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error}. Check the file.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{file} is not valid JSON ({error}): it is damaged or cut off. Fetch it again."
        ) from error
    raise DatasetError(f"{file} is not a regular file. Name the annotation file.")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):  # Python would take the last one
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r:.60} appears twice in an object")
    return members
