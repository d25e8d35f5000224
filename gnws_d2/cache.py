"""The folder in which the package keeps what it makes, such as the Digits dataset."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import GnwsError

CACHE_VARIABLE = "GNWS_D2_CACHE"


class CacheError(GnwsError, OSError):
    """The cache folder cannot be created or written to."""


def cache_path() -> Path:
    """Return the cache folder, without creating anything.

    It is ``$GNWS_D2_CACHE`` if that is set, else ``gnws_d2_cache`` beside Detectron2's own cache
    (``$FVCORE_CACHE``, by default ``~/.torch/iopath_cache``).
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    # iopath's get_cache_dir follows the same rule, but it creates its folder when asked, and this
    # function runs when the package is imported.
    detectron2_cache = os.environ.get("FVCORE_CACHE") or "~/.torch/iopath_cache"
    return Path(detectron2_cache).expanduser().absolute().parent / "gnws_d2_cache"


def ensure_writable(folder: Path) -> Path:
    """Create ``folder`` with its parents if needed, and return it.

    Raises:
        CacheError: the folder cannot be created or written to.
    """
    fix = f"Set ${CACHE_VARIABLE} to a folder that you can write to."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"Cannot create the cache folder {folder} ({error}). {fix}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"The cache folder {folder} is not writable. {fix}")
    return folder


def cache_dir() -> Path:
    """Return the cache folder (see :func:`cache_path`), created and writable.

    Raises:
        OSError: it cannot be created or written to.
    """
    return ensure_writable(cache_path())
