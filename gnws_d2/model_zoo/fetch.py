"""Published checkpoints as files for Detectron2: found, downloaded, verified, converted, cached."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from detectron2.utils.file_io import PathHandler, PathManager

from ..checkpoint.convert import convert_file
from ..errors import FileError
from ..files import cache_dir, cache_path, locked
from .download import download, sha256_of
from .published import PREFIX, Published, find

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "GNWS_D2_MIRROR"
_FOLDER = "checkpoints"
_DIGITS = 8  # of the converted file's SHA-256, in its name
_WAIT = 3600.0  # seconds for another process to download and convert


def cached(entry: Published) -> Path | None:
    """The converted checkpoint if it is in the cache; its content is not looked at."""
    stem = Path(entry.file_name).stem
    files = (cache_path() / _FOLDER).glob(f"{stem}.detectron2-{'[0-9a-f]' * _DIGITS}.pth")
    return min(files, default=None)


def fetch(entry: Published) -> Path:
    """The checkpoint as a file that any Detectron2 program loads.

    The first call downloads the published file into the cache folder, or takes it from there or
    from ``$GNWS_D2_MIRROR`` (a folder or an address that has the files under their own names), and
    converts it; later calls verify the result and return it. Of several processes that call this at
    once, one does the work.

    Raises:
        FileError: the file cannot be downloaded or written, or the process that does the work does
            not end.
        CheckpointError: it does not fit the config.
    """
    if file := _verified(entry):
        return file
    folder = cache_dir(cache_path() / _FOLDER)
    with locked(folder / f"{entry.file_name}.lock", _WAIT):
        return _verified(entry) or _convert(entry, _original(entry, folder), folder)


class PublishedCheckpointHandler(PathHandler):
    """``gnws://NAME`` in Detectron2's path manager: the file that :func:`fetch` returns."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(fetch(find(path)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)


def _verified(entry: Published) -> Path | None:
    file = cached(entry)
    return file if file and _is_intact(file) else None


def _is_intact(file: Path) -> bool:
    """Whether it exists, and its name ends in the first digits of its SHA-256."""
    return file.is_file() and sha256_of(file).startswith(file.stem.rpartition("-")[2])


def _original(entry: Published, folder: Path) -> Path:
    """The published file, verified: from the cache, the mirror's folder or the network."""
    file = folder / entry.file_name
    if _is_intact(file):
        return file
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    if mirror and not mirror.startswith(("http://", "https://")):
        copy = Path(os.path.expanduser(mirror), entry.file_name)
        if not _is_intact(copy):
            raise FileError(
                f"{copy} does not exist, or its SHA-256 does not begin with {entry.sha256}. Put "
                f"the file there, set ${MIRROR_VARIABLE} to another folder or to an address that "
                "begins with http:// or https://, or unset it to use the official address."
            )
        return copy
    url = f"{mirror.rstrip('/')}/{quote(entry.file_name)}" if mirror else entry.url
    logger.info("Downloading %s from %s to %s", entry.name, url, folder)
    download(url, file, entry.sha256)
    return file


def _convert(entry: Published, original: Path, folder: Path) -> Path:
    partial = folder / f".{original.stem}.partial"
    partial.unlink(missing_ok=True)
    convert_file(original, partial, "detectron2", entry.config)
    while damaged := cached(entry):  # it would have been returned
        logger.warning("%s is damaged and is converted again.", damaged)
        damaged.unlink()
    name = f"{original.stem}.detectron2-{sha256_of(partial)[:_DIGITS]}.pth"
    return partial.rename(folder / name)
