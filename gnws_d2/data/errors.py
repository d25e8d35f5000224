"""The error of datasets, which names the file, what was found and the fix."""

from __future__ import annotations

from ..errors import GnwsError


class DatasetError(GnwsError, ValueError):
    """A dataset that cannot be read, or does not fit the config."""
