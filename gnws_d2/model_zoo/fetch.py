"""Published checkpoints as files for Detectron2: found, downloaded, verified, converted, cached."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from ..cache import cache_dir, cache_path
from ..checkpoint import CheckpointError, Provenance, mmdet_to_detectron2
from ..checkpoint.convert import detectron2_checkpoint, state_dict_of
from ..checkpoint.files import read_checkpoint, write_checkpoint
from ..checkpoint.structure import standardized_parts
from ..config import load_config
from .download import DownloadError, download, sha256_of
from .published import Published

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "GNWS_D2_MIRROR"
_FOLDER = "checkpoints"
_DIGITS = 8  # of a SHA-256, in file names


def cached(entry: Published) -> Path | None:
    """The converted checkpoint if it is in the cache; its content is not looked at."""
    stem = Path(entry.file_name).stem
    found = sorted((cache_path() / _FOLDER).glob(f"{stem}.detectron2-{'[0-9a-f]' * _DIGITS}.pth"))
    return found[0] if found else None


def fetch(entry: Published) -> Path:
    """The checkpoint as a file that any Detectron2 program loads.

    The first call downloads the published file into the cache folder, or takes it from there or
    from ``$GNWS_D2_MIRROR`` (a folder or an address that has the files under their own names), and
    converts it; later calls verify the result and return it. Of several processes that call this at
    once, one does the work.

    Raises:
        DownloadError: the file cannot be downloaded.
        CheckpointError: it does not fit the config.
        OSError: the cache folder cannot be written to.
    """
    if file := _verified(entry):
        return file
    folder = cache_dir() / _FOLDER
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{entry.file_name}.lock"):
        return _verified(entry) or _convert(entry, _original(entry, folder), folder)


def _verified(entry: Published) -> Path | None:
    file = cached(entry)
    if file is None:
        return None
    if sha256_of(file).startswith(file.stem.rpartition("-")[2]):
        return file
    logger.warning("%s is damaged and is converted again.", file)
    return None


def _original(entry: Published, folder: Path) -> Path:
    """The published file, verified."""
    file = folder / entry.file_name
    if file.exists():
        if sha256_of(file).startswith(entry.sha256):
            return file
        logger.warning("%s is damaged or another file, and is downloaded again.", file)
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    url = entry.url
    if mirror.startswith(("http://", "https://")):
        url = f"{mirror.rstrip('/')}/{quote(entry.file_name)}"
    elif mirror:
        copy = Path(mirror).expanduser() / entry.file_name
        if copy.is_file():
            found = sha256_of(copy)
            if found.startswith(entry.sha256):
                return copy
            raise DownloadError(
                f"{copy}, in the folder that ${MIRROR_VARIABLE} names, is damaged or another file: "
                f"its SHA-256 begins with {found[:_DIGITS]}, not {entry.sha256}. Replace it."
            )
    logger.info("Downloading %s from %s to %s", entry.name, url, folder)
    download(url, file, entry.sha256)
    return file


def _convert(entry: Published, original: Path, folder: Path) -> Path:
    config = load_config(entry.config)
    try:
        state_dict = state_dict_of(read_checkpoint(original), "state_dict")
        tensors = mmdet_to_detectron2(state_dict, config)
    except CheckpointError as error:
        raise CheckpointError(f"{original}: {error}") from error
    provenance = Provenance.of(config, standardized_parts(config), entry.file_name)
    if entry.is_backbone:
        provenance = provenance.of_backbone()
        tensors = {name: t for name, t in tensors.items() if not name.startswith("linear.")}
    stem = original.stem
    partial = folder / f".{stem}.partial"
    write_checkpoint(detectron2_checkpoint(tensors, provenance), partial)
    file = folder / f"{stem}.detectron2-{sha256_of(partial)[:_DIGITS]}.pth"
    for older in folder.glob(f"{stem}.detectron2-*.pth"):
        older.unlink()  # damaged, or there would be nothing to convert
    partial.replace(file)
    logger.info("%s is converted and cached as %s", entry.name, file)
    return file
