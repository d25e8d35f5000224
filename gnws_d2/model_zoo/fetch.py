"""Published checkpoints as files for Detectron2: found, downloaded, verified, converted, cached."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.parse import quote

from ..cache import cache_dir, cache_path
from ..checkpoint import CheckpointError, Provenance, mmdet_to_detectron2
from ..checkpoint.convert import detectron2_checkpoint, state_dict_of
from ..checkpoint.files import read_checkpoint, write_checkpoint
from ..checkpoint.structure import standardized_parts
from ..config import load_config
from ..files import atomic_write
from ..lock import locked
from .download import TOTAL, DownloadError, download, sha256_of
from .published import Published

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "GNWS_D2_MIRROR"
_FOLDER = "checkpoints"
_DIGITS = 8  # of a SHA-256, in file names
_WAIT = TOTAL + 600.0  # seconds for a process that downloads and converts


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
        LockError: the process that does the work does not end.
        CheckpointError: it does not fit the config.
        OSError: the cache folder cannot be written to.
    """
    if file := _verified(entry):
        return file
    folder = cache_dir() / _FOLDER
    folder.mkdir(exist_ok=True)
    with locked(folder / f"{entry.file_name}.lock", _WAIT):
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
    """The published file, verified against its full SHA-256 if the official address has ever sent
    it here, else against the digits in its name."""
    file = folder / entry.file_name
    record = folder / f"{entry.file_name}.sha256"
    known = _recorded(record)
    sha256 = known or entry.sha256
    if file.exists():
        if sha256_of(file).startswith(sha256):
            _say_if_unknown(file, known)
            return file
        logger.warning("%s is damaged or another file, and is downloaded again.", file)
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    if mirror and not mirror.startswith(("http://", "https://")):
        copy = _in_folder(mirror, entry.file_name, sha256)
        _say_if_unknown(copy, known)
        return copy
    url = f"{mirror.rstrip('/')}/{quote(entry.file_name)}" if mirror else entry.url
    logger.info("Downloading %s from %s to %s", entry.name, url, folder)
    download(url, file, sha256)
    if mirror:
        _say_if_unknown(file, known)
    elif not known:
        with atomic_write(record) as partial:  # as `sha256sum --check` reads it
            partial.write_text(f"{sha256_of(file)}  {file.name}\n", encoding="utf-8")
    return file


def _in_folder(mirror: str, name: str, sha256: str) -> Path:
    if "://" in mirror:
        raise DownloadError(
            f"${MIRROR_VARIABLE} is {mirror!r}, which is neither a folder nor an address. Set it "
            "to a folder, or to an address that begins with http:// or https://."
        )
    folder = Path(mirror).expanduser()
    copy = folder / name
    if not copy.is_file():
        missing = copy if folder.is_dir() else folder
        raise DownloadError(
            f"{missing}, in or of the folder that ${MIRROR_VARIABLE} names, does not exist. Put it "
            f"there, or unset ${MIRROR_VARIABLE} to download from the official address."
        )
    found = sha256_of(copy)
    if not found.startswith(sha256):
        raise DownloadError(
            f"{copy}, in the folder that ${MIRROR_VARIABLE} names, is damaged or another file: "
            f"its SHA-256 begins with {found[: len(sha256)]}, not {sha256}. Replace it."
        )
    return copy


def _recorded(record: Path) -> str:
    """The full SHA-256 of the file that the official address sent; "" if there is none."""
    try:
        found = re.match("[0-9a-f]{64}(?= )", record.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return ""
    return found[0] if found else ""


def _say_if_unknown(file: Path, known: str) -> None:
    if not known:
        logger.warning(
            "%s did not come from the official address and its full SHA-256 is unknown: the %d "
            "digits in its name show that it is undamaged, not that it is authentic.",
            file,
            _DIGITS,
        )


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
