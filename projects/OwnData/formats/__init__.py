"""Readers of annotation formats other than COCO, and how a file or folder is recognized.

Each reader is a function from a source to a :class:`~..coco_file.CocoFile`, a module a family.
"""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gnws_d2.errors import DatasetError

from ..coco_file import CocoFile, read_json
from ..source import Source, is_mask_folder, split_of
from . import csv_files, label_studio, labelme, masks, via, xml_files, yolo
from .common import images_below, reading, visible

KNOWN = (
    "COCO, LabelMe, VIA or Label Studio JSON, Pascal VOC or CVAT XML, CSV, YOLO, or instance masks"
)
JSON_KINDS = {  # formats of JSON files: what tells them, and their readers
    labelme.NAME: (labelme.is_labelme, labelme.read),
    via.NAME: (via.is_via, via.read),
    label_studio.NAME: (label_studio.is_label_studio, label_studio.read),
}
FOLDERS = {  # formats that have a file an image: their readers
    **{xml_files.VOC: xml_files.read_voc, labelme.NAME: labelme.read},
    **{yolo.NAME: yolo.read, masks.NAME: masks.read},
}
MOST_PROBED = 1000  # text files of a folder
DEPTH = 4  # folders in folders that are looked into
# A large COCO file is not read to find out what it is: one that starts as no other does is COCO.
HEAD, OTHER_WORDS = 4096, (b'"shapes"', b'"imageData"', b'"_via_', b'"regions"')


def read(source: Source) -> CocoFile:
    """The content of a folder, or of a file that is not JSON.

    Raises:
        DatasetError: it is damaged, or of no known format.
    """
    with reading(source):
        return _reader(source)(source)


def read_other_json(source: Source, content: Any) -> CocoFile | None:
    """The content of a JSON file that is not COCO; None if its format is not known."""
    with reading(source):
        kind = _kind_of(content)
        return JSON_KINDS[kind][1](source, content) if kind else None


def _kind_of(content: Any) -> str:
    """The format of the content of a JSON file; "" if it is COCO or not known."""
    return next((kind for kind, (is_kind, _) in JSON_KINDS.items() if is_kind(content)), "")


def _reader(source: Source) -> Callable[[Source], CocoFile]:
    file, suffix = source.file, source.file.suffix.lower()
    if file.is_dir():
        counts = folder_kinds(file)
        if not counts and not images_below(source.folder or file, "**/*"):
            raise DatasetError(f"{source} holds {contents(file)}, which is none of {KNOWN}.")
        return FOLDERS[max(counts, key=counts.__getitem__, default=yolo.NAME)]
    if suffix == ".txt":
        return xml_files.read_voc if "ImageSets" in file.parts else yolo.read
    return xml_files.read if suffix == ".xml" else csv_files.read


def folder_kinds(folder: Path) -> dict[str, int]:
    """How many files there are in a folder of each format that has a file an image."""
    xml, jsons, texts = (visible(folder, end) for end in (".xml", ".json", ".txt"))
    labels = [file for file in texts if file.name not in yolo.NAME_FILES]
    counts = {
        xml_files.VOC: len(xml) * (xml_files.VOC in map(xml_files.kind_of, xml[:1])),
        labelme.NAME: len(jsons) * (labelme.NAME in map(_json_kind, jsons[:1])),
        yolo.NAME: len(labels) * any(map(yolo.is_label, labels[:MOST_PROBED])),
        masks.NAME: len(masks.bowl_images(folder) or masks.mask_files(folder)),
    }
    return {kind: count for kind, count in counts.items() if count}


def find(folder: Path, listing: Path | None = None) -> dict[str, dict[str, list[str]]]:
    """The sources below a folder that are not COCO: by format, then by split or "".

    Args:
        listing: the YAML file of YOLO that names the splits; by default any in ``folder``.
    """
    found: dict[str, dict[str, list[str]]] = {}

    def add(kind: str, path: Path) -> None:
        inside = path.relative_to(folder)
        split = split_of(inside.stem) or split_of(str(inside.parent)) or ""
        found.setdefault(kind, {}).setdefault(split, []).append(str(Source(path)))

    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(place)
        if len(here.relative_to(folder).parts) >= DEPTH:
            folders.clear()
        kinds = folder_kinds(here)
        for kind in kinds:
            add(kind, here)
        if masks.NAME in kinds and masks.bowl_images(here):
            folders.clear()
        for file in (here / name for name in sorted(names) if not name.startswith(".")):
            suffix = file.suffix.lower()
            if suffix == ".csv" and csv_files.is_csv(file):
                add(csv_files.NAME, file)
            elif suffix == ".xml" and xml_files.VOC not in kinds:
                if xml_files.kind_of(file) == xml_files.CVAT:
                    add(xml_files.CVAT, file)
            elif suffix == ".json" and labelme.NAME not in kinds and (kind := _json_kind(file)):
                add(kind, file)
    for kind, splits in (
        (yolo.NAME, yolo.listed_splits(folder, listing)),
        (xml_files.VOC, xml_files.listed_splits(folder)),
    ):
        if splits:
            found[kind] = splits
    return found


def contents(folder: Path) -> str:
    """The files below a folder, counted by their suffix, and what to do with some."""
    files = (name for _, _, names in os.walk(folder) for name in names)
    counts = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name in files)
    advice = {".zip": " (unzip it)", ".jpg": " (no masks: these must be lossless, such as PNG)"}
    if not any(map(is_mask_folder, folder.glob("**/"))):
        del advice[".jpg"]
    found = (f"{n} {end}{advice.get(end, '')}" for end, n in counts.most_common(6))
    return ", ".join(found) or "no files"


def _json_kind(file: Path) -> str:
    """The format of a JSON file that is not COCO; "" if there is none."""
    with suppress(DatasetError, OSError):
        with open(file, "rb") as opened:
            head = opened.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"[") or any(word in head for word in OTHER_WORDS):
            return _kind_of(read_json(file))
    return ""
