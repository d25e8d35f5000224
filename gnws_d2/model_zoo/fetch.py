"""Published checkpoints as files for Detectron2: found, downloaded, verified, converted, cached."""

import logging
import os
import zipfile
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from detectron2.utils.file_io import PathHandler, PathManager

from ..checkpoint.convert import convert_file
from ..errors import FileError
from ..files import cache_dir, cache_path, locked
from .download import answers, download, sha256_of
from .published import PREFIX, Published, find

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "GNWS_D2_MIRROR"
_WAIT = 3600.0  # seconds for another process to download and convert


def cached(entry: Published) -> Path:
    """The file of the converted checkpoint, which may not be there yet."""
    return cache_path() / "checkpoints" / f"{Path(entry.file_name).stem}.detectron2.pth"


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
    converted = cached(entry)
    if _is_whole(converted):
        return converted
    folder = cache_dir(converted.parent)
    with locked(folder / f"{entry.file_name}.lock", _WAIT):
        if not _is_whole(converted):  # another process may have done it
            original = _original(entry, folder)
            if converted.is_file():
                logger.warning("%s is damaged and is converted again.", converted)
                converted.unlink()
            convert_file(original, converted, "detectron2", entry.config)
    return converted


def is_available(entry: Published) -> bool:
    """Whether :func:`fetch` is likely to succeed: the file is in the cache or the mirror's folder,
    or its address answers."""
    source = _source(entry)
    if cached(entry).is_file() or cached(entry).with_name(entry.file_name).is_file():
        return True
    return source.is_file() if isinstance(source, Path) else answers(source)


class PublishedCheckpointHandler(PathHandler):
    """``gnws://NAME`` in Detectron2's path manager: the file that :func:`fetch` returns."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(fetch(find(path)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)


def _is_whole(converted: Path) -> bool:
    """Whether it exists, and all of its records have the checksums that torch stored with them."""
    try:
        with zipfile.ZipFile(converted) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises nearly anything on damaged files
        return False


def _is_intact(file: Path, entry: Published) -> bool:
    return file.is_file() and sha256_of(file).startswith(entry.sha256)


def _original(entry: Published, folder: Path) -> Path:
    """The published file, verified: from the cache, the mirror's folder or the network."""
    file = folder / entry.file_name
    if _is_intact(file, entry):
        return file
    source = _source(entry)
    if isinstance(source, Path):
        if not _is_intact(source, entry):
            raise FileError(
                f"{source} does not exist, or its SHA-256 does not begin with {entry.sha256}. Put "
                f"the file there, set ${MIRROR_VARIABLE} to another folder or to an address that "
                "begins with http:// or https://, or unset it to use the official address."
            )
        return source
    logger.info("Downloading %s from %s to %s", entry.name, source, folder)
    download(source, file, entry.sha256)
    return file


def _source(entry: Published) -> Path | str:
    """The file in the mirror's folder, or the address."""
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    if mirror and not mirror.startswith(("http://", "https://")):
        return Path(os.path.expanduser(mirror), entry.file_name)
    return f"{mirror.rstrip('/')}/{quote(entry.file_name)}" if mirror else entry.url
