"""One run at a time in an output folder: two would mix their checkpoints."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils import comm
from filelock import BaseFileLock, FileLock, Timeout

from ..errors import GnwsError

LOCK = ".lock"
# How long a process that was killed may take to be gone.
PATIENCE = 3.0  # seconds


_locks: dict[Path, BaseFileLock] = {}


class OutputFolderError(GnwsError, RuntimeError):
    """Another run writes into the folder."""


def lock_output(folder: str | Path) -> BaseFileLock | None:
    """Keep other runs out of ``folder``, until the lock is released or this process ends.

    The main process has the lock, as often as it asks for it.

    Raises:
        OutputFolderError: another run has it; the message names its process and machine.
    """
    if not comm.is_main_process():
        return None
    file = Path(folder) / LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    # Kept, because a lock that is garbage-collected is released.
    lock = _locks.setdefault(file.resolve(), FileLock(file))
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise OutputFolderError(
            f"{folder} is in use by another run, {file.read_text(encoding='utf-8')}. Wait for it, "
            "end it, or choose another OUTPUT_DIR."
        ) from None
    file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return lock


@contextmanager
def locked_output(folder: str | Path) -> Iterator[None]:
    """:func:`lock_output` for the time of the block."""
    lock = lock_output(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
