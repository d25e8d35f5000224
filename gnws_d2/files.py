"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Give a temporary name beside ``file`` to write to, which then replaces ``file``.

    Where the block raises, what was written is removed and ``file`` stays as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        # What mkstemp makes, nobody else may read.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
