"""Checkpoint files appear under their names only when they are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import FileError
from ..files import atomic_write


def write_checkpoint(checkpoint: dict[str, Any], file: Path) -> None:
    """``torch.save`` under a temporary name, then rename.

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
