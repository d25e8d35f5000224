"""Writing files so that they appear whole or not at all, also when the machine stops."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import tempfile
from collections.abc import Iterator
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
    descriptor, partial = _locked_temporary(file)
    try:
        yield partial
        # Only the owner may read what mkstemp makes.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        _sync(partial)
        partial.replace(file)
        with contextlib.suppress(OSError):  # some file systems cannot do this for a folder
            _sync(file.parent)
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_temporary(file: Path) -> tuple[int, Path]:
    """The lock ends with the process, so that others see whether it is still at work."""
    while True:
        descriptor, name = tempfile.mkstemp(
            prefix=f".{file.name}.", suffix=_SUFFIX, dir=file.parent
        )
        with contextlib.suppress(OSError):  # no locks here: nothing is ever taken for stale
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):  # else taken for stale before it was locked
            return descriptor, Path(name)
        os.close(descriptor)


@functools.cache  # once for each folder
def _remove_stale(folder: Path) -> None:
    for partial in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError), partial.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
