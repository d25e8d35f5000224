"""Find the images that an annotation file names, also where it spells their paths in another way.

Names in annotation files are those of the machine or tool that wrote them: with backslashes, in
other letter case, URL-encoded, in another Unicode form, behind a folder that is not there.
"""

import contextlib
import functools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from gnws_d2.errors import DatasetError, shorten

PROBED_IMAGES = 20  # of a file, to find out where its images are
SUFFIXES = {".jpeg": ".jpg", ".tiff": ".tif"}  # two spellings of one
OTHER_SUFFIXES = (".jpg", ".png", ".tif", ".bmp", ".webp", ".gif")

Listing = Callable[[str], Mapping[str, list[str]]]  # of a folder: its entries by their key


@dataclass(frozen=True)
class ImageFiles:
    """Where the images of an annotation file are.

    Attributes:
        folder: the folder that their names are relative to.
        candidates: for each file_name that does not exist there, the paths that it may stand for,
            relative to ``folder``.
    """

    folder: Path
    candidates: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @functools.cached_property
    def renamed(self) -> dict[str, str]:
        """The path of each image that is found under another name than its file_name."""
        return {name: paths[0] for name, paths in self.candidates.items() if len(paths) == 1}

    def path(self, file_name: str) -> Path:
        """The path of an image, which may not exist."""
        return self.folder / self.renamed.get(file_name, file_name)

    def problem(self, file_name: str) -> str:
        """Why it is not known which file an image is, or ""."""
        if len(paths := self.candidates.get(file_name, ())) > 1:
            return f"it could be {' or '.join(paths)} in {self.folder}. Correct its file_name"
        path = self.path(file_name)
        for suffix in OTHER_SUFFIXES if file_name in self.candidates and not paths else ():
            if os.path.exists(near := os.path.splitext(path)[0] + suffix):
                return f"{path} does not exist, but {near} does"
        return ""


def find_images(
    file_names: Sequence[str], folders: Sequence[Path], own: Path | None = None
) -> ImageFiles | None:
    """Find the folder of the images, and the files that ``file_names`` stand for.

    It is the first folder that contains more than half of the first images under their names, or
    the one that contains most. If no folder contains one, it is the folder in which most are found
    under another spelling, or without the first parts of their path: the longest part that is found
    counts. Folders in ``own`` that have more than half then come before all others.

    Returns:
        None if no image is found.

    Raises:
        DatasetError: different files could be meant.
    """
    probes = file_names[:PROBED_IMAGES]
    listing = functools.cache(_listing)
    exact = [sum(os.path.exists(folder / name) for name in probes) for folder in folders]
    if most := max(exact, default=0):
        enough = min(most, len(probes) // 2 + 1)
        folder, find = folders[next(i for i, n in enumerate(exact) if n >= enough)], _spelled
    else:
        inside = [folder for folder in folders if own in (folder, *folder.parents)]
        there = find_images(file_names, inside) if inside and own else None
        if there and 2 * sum(map(bool, there.candidates.values())) > len(file_names):
            return there
        ranks: defaultdict[tuple[int, int], dict[str, Path]] = defaultdict(dict)
        for folder in folders:
            every = [_without_prefix(folder, _parts(name), listing) for name in probes]
            if found := [paths[0] for paths in every if paths]:
                rank = len(found), sum(path.count(os.sep) for path in found)
                ranks[rank].setdefault(os.path.realpath(folder / found[0]), folder)
        if not ranks:
            return None
        best = ranks[max(ranks)]
        if len(best) > 1:
            first = shorten(probes[0])
            raise DatasetError(f"the image {first} could be {' or '.join(best)}. Name the folder")
        folder, find = next(iter(best.values())), _without_prefix
    missing = [name for name in file_names if not os.path.exists(folder / name)]
    return ImageFiles(folder, {name: find(folder, _parts(name), listing) for name in missing})


def path_key(path: str | Path) -> tuple[str, ...]:
    """The parts of the path of a file, or of a file_name, each the same for all its spellings."""
    parts = path.parts if isinstance(path, Path) else _parts(path)
    return tuple(_key(part) for part in parts if part != "..")


def _parts(file_name: str) -> list[str]:
    """The parts of a path or address, of any system."""
    path, _, query = file_name.partition("?")
    if not os.path.splitext(path)[1]:  # Label Studio: /data/local-files/?d=images/a.png
        path = next((v for _, v in parse_qsl(query) if os.path.splitext(v)[1]), file_name)
    return [part for part in re.split(r"[\\/]+", unquote(path)) if part not in ("", ".")]


def _without_prefix(folder: Path, parts: Sequence[str], listing: Listing) -> list[str]:
    """What the longest end of ``parts`` stands for in ``folder``."""
    ends = [parts[start:] for start in range(len(parts))]
    if "upload" in parts:  # Label Studio puts eight digits and a hyphen before a name
        ends.append([parts[-1].partition("-")[2]])
    return next(filter(None, (_spelled(folder, end, listing) for end in ends)), [])


def _spelled(folder: Path, parts: Sequence[str], listing: Listing) -> list[str]:
    """The paths in ``folder`` that ``parts`` spell in some way."""
    found = [""] if parts else []
    for part in parts:
        found = [
            os.path.join(base, entry)
            for base in found
            for entry in listing(os.path.join(folder, base)).get(_key(part), ())
        ]
    return found


def _listing(folder: str) -> Mapping[str, list[str]]:
    entries: dict[str, list[str]] = defaultdict(list)
    with contextlib.suppress(OSError, ValueError):  # of what is no folder, or not readable
        for entry in sorted(os.listdir(folder)):
            entries[_key(entry)].append(entry)
    return entries


def _key(name: str) -> str:
    """The same for all spellings of a name."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", unquote(name)).casefold().strip())
    return unicodedata.normalize("NFC", stem) + SUFFIXES.get(suffix, suffix)
