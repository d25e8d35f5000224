"""Files that appear whole or not at all, locks between processes, and the cache folder."""

import contextlib
import functools
import logging
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from filelock import FileLock, Timeout

from .errors import FileError, shorten

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "GNWS_D2_CACHE"
_KILLED = 3.0  # seconds that a run that was killed may take to be gone
_SUFFIX = ".gnws.partial"
_DAY = 86_400  # seconds


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside ``file`` to write, which then replaces ``file``.

    It is on the disk before it gets the name. If the block raises, what was written is removed and
    ``file`` stays as it was. The first call for a folder removes the temporary files that a killed
    process left there more than a day ago.
    """
    _remove_stale(file.parent)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}{_SUFFIX}")
    try:
        yield partial
        publish(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def publish(written: Path, file: Path) -> None:
    """Give ``written``, which is in the same file system, the name ``file`` once it is on the
    disk."""
    _sync(written)
    written.replace(file)
    with contextlib.suppress(OSError):  # some file systems cannot do this for a folder
        _sync(file.parent)


def write_checkpoint(checkpoint: dict[str, Any], file: Path) -> None:
    """``torch.save``, by :func:`atomic_write`.

    Raises:
        FileError: the file cannot be written; what had this name before is untouched.
    """
    try:
        # To a stream: torch.save would put the temporary name into the file, and no two were equal.
        with atomic_write(file) as partial, partial.open("wb") as stream:
            torch.save(checkpoint, stream)
    except (RuntimeError, OSError) as error:  # torch reports a full disk as either
        raise FileError(
            f"{file} cannot be written ({error}). Make room, or choose another folder."
        ) from error


def restored(file: Path) -> contextlib.ExitStack:
    """A context at whose end ``file`` is as it is now, in the main process, unless its ``pop_all``
    was called."""
    before = file.read_bytes() if file.is_file() else None

    def restore() -> None:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            with atomic_write(file) as partial:
                partial.write_bytes(before)

    context = contextlib.ExitStack()
    if comm.is_main_process():
        context.callback(restore)
    return context


@functools.cache  # once for each folder
def _remove_stale(folder: Path) -> None:
    for left in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY:
                left.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(
    file: Path, seconds: float, fix: str = "End that process if it hangs."
) -> Iterator[None]:
    """Hold the lock ``file``, whose holder's name is written to ``file``.holder. The process that
    holds it may take it again; when it ends in any way, the lock is free.

    Args:
        seconds: how long to wait for another process.
        fix: what to do if it does not end; the last sentence of the error.

    Raises:
        FileError: another process still holds the lock.
    """
    holder = file.with_name(f"{file.name}.holder")
    lock = FileLock(file, is_singleton=True)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("Waiting for %s, which holds %s.", _read(holder), file)
            lock.acquire(timeout=seconds)
    except Timeout as error:
        raise FileError(
            f"{file} is held by {_read(holder)}, for more than {seconds:g} s. {fix}"
        ) from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    try:
        return shorten(holder.read_text(encoding="utf-8", errors="replace"), quote=False)
    except OSError:
        return "an unknown process"


@contextlib.contextmanager
def locked_output(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of ``folder`` for the time of the block: two would mix their checkpoints.
    Only the main process takes the lock, as often as it asks for it.

    Raises:
        FileError: another run has it; the message names its process and machine.
    """
    if not comm.is_main_process():
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    fix = f"Another run uses {folder}. Wait for it, end it, or choose another OUTPUT_DIR."
    with locked(Path(folder) / ".lock", _KILLED, fix):
        yield


def cache_path() -> Path:
    """The folder in which the package keeps what it makes, without creating it: ``$GNWS_D2_CACHE``
    if that is set, else ``gnws_d2_cache`` beside Detectron2's own cache (``$FVCORE_CACHE``, by
    default ``~/.torch/iopath_cache``)."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    # iopath's get_cache_dir follows the same rule, but it creates its folder when asked.
    detectron2_cache = os.environ.get("FVCORE_CACHE") or "~/.torch/iopath_cache"
    return Path(detectron2_cache).expanduser().absolute().parent / "gnws_d2_cache"


def cache_dir(folder: Path) -> Path:
    """``folder``, :func:`cache_path` or one in it, created and writable.

    Raises:
        FileError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise FileError(
            f"The cache folder {folder} cannot be written to ({error}). Set ${CACHE_VARIABLE} to "
            "a folder that you can write to."
        ) from error
    return folder
