"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``file`` to write to, which then replaces ``file``.

    If the block raises, what was written is removed and ``file`` stays as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        # Only the owner may read what mkstemp makes.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
