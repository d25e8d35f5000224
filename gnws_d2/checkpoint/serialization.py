"""Checkpoint files: reading executes nothing, and writing never damages an existing file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, FileError, shorten
from ..files import atomic_write

_EXPANDED = 1 << 28  # bytes


def read_checkpoint(file: str | Path) -> Any:
    """Load tensors and plain values from a file that ``torch.save`` wrote, onto the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        _compare_checksums(file)
        _check_memory(checkpoint)
        return checkpoint
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist. Correct its path.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors and plain values, or is not a checkpoint; it was "
            "not loaded, because loading it could run a program hidden in it: "
            f"{shorten(_cause(error), quote=False)}"
        ) from error
    except Exception as error:  # a damaged pickle stops torch.load in any of many ways
        reason = shorten(f"{type(error).__name__}: {error}", quote=False)
        raise CheckpointError(
            f"{file} cannot be read ({reason}): it is damaged or cut off. Fetch it again, or name "
            "another in MODEL.WEIGHTS; to resume, name an earlier checkpoint of the run in "
            "OUTPUT_DIR/last_checkpoint."
        ) from error


def _cause(error: Exception) -> str:
    """The sentence in which torch.load says what it found, without its advice around it."""
    found = str(error).partition("\n\nCheck the documentation")[0].rpartition("\n")[2]
    return found.rpartition("error: ")[2].partition(". ")[0].rstrip(".")


def _compare_checksums(file: str | Path) -> None:
    """Raise BadZipFile if a byte has changed. torch.save writes a zip file, with a CRC-32 of each
    tensor that torch.load does not compare."""
    if not zipfile.is_zipfile(file):
        return  # of torch before 1.6
    with zipfile.ZipFile(file) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            return  # not of torch.save; expanding it may take for ever
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs")


def _check_memory(value: Any) -> None:
    """Raise ValueError for a tensor that is larger than what the file holds of it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for element in value:
            _check_memory(element)
    elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
        size = value.numel() * value.element_size()
        # Views of one storage that overlap a little are usual, such as expanded buffers.
        if value.device.type == "meta" or size > max(value.untyped_storage().nbytes(), _EXPANDED):
            raise ValueError(f"a tensor of shape {tuple(value.shape)} without its content")


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
