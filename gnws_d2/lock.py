"""A lock between processes that says who holds it, and does not wait for ever."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import GnwsError, shorten

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds before the log says what is waited for


class LockError(GnwsError, OSError):
    """Another process holds a lock for too long; the message names both and the fix."""


@contextlib.contextmanager
def locked(file: Path, seconds: float) -> Iterator[None]:
    """Hold the lock ``file``; its holder stands in ``file``.holder, beside it.

    The lock of a process that ends in any way is free.

    Args:
        seconds: how long to wait for it.

    Raises:
        LockError: another process still holds it.
    """
    holder = file.with_name(f"{file.name}.holder")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=min(PATIENCE, seconds))
    except Timeout:
        logger.warning("Waiting for %s, which holds %s.", _read(holder), file)
        try:
            lock.acquire(timeout=max(seconds - PATIENCE, 0))
        except Timeout as error:
            raise LockError(
                f"{file} is held by {_read(holder)}, for more than {seconds:g} s. "
                "End that process if it hangs, and start again."
            ) from error
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    try:
        return shorten(holder.read_text(encoding="utf-8", errors="replace"), quote=False)
    except OSError:
        return "an unknown process"
