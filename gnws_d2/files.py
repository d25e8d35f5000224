"""Writing files so that they appear whole or not at all, also when the machine stops."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".gnws.partial"


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``file`` to write to, which then replaces ``file``.

    It is on the disk before it gets the name. If the block raises, what was written is removed and
    ``file`` stays as it was. The first call for a folder removes the temporary files there whose
    process was killed.
    """
    _remove_stale(file.parent)
    descriptor, partial = _locked_temporary(_make_file, file.parent, f".{file.name}.")
    try:
        yield partial
        # Only the owner may read what mkstemp makes.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        publish(partial, file)
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def publish(written: Path, file: Path) -> None:
    """Give ``written``, which is in the same file system, the name ``file`` once it is on the
    disk."""
    _sync(written)
    written.replace(file)
    with contextlib.suppress(OSError):  # some file systems cannot do this for a folder
        _sync(file.parent)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in ``parent``, for files that :func:`publish` then moves out of it, and
    remove it. The first call for ``parent`` removes those there whose process was killed."""
    _remove_stale(parent)
    descriptor, folder = _locked_temporary(tempfile.mkdtemp, parent, ".")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make_file(suffix: str, prefix: str, dir: Path) -> str:
    descriptor, name = tempfile.mkstemp(suffix, prefix, dir)
    os.close(descriptor)
    return name


def _locked_temporary(make: Callable[..., str], parent: Path, prefix: str) -> tuple[int, Path]:
    """The lock ends with the process, so that others see whether it is still at work."""
    while True:
        made = Path(make(_SUFFIX, prefix, parent))
        with contextlib.suppress(FileNotFoundError):  # taken for stale before it was locked
            descriptor = os.open(made, os.O_RDONLY)
            with contextlib.suppress(OSError):  # no locks here: nothing is ever taken for stale
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if made.exists():
                return descriptor, made
            os.close(descriptor)


@functools.cache  # once for each folder
def _remove_stale(parent: Path) -> None:
    for left in parent.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
