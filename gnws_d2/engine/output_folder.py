"""The output folder of a run belongs to it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils import comm

from ..files import locked

PATIENCE = 3.0  # seconds that a process that was killed may take to be gone


@contextmanager
def locked_output(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of ``folder`` for the time of the block: two would mix their checkpoints.
    Only the main process takes the lock, as often as it asks for it.

    Raises:
        FileError: another run has it; the message names its process and machine.
    """
    if not comm.is_main_process():
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    fix = f"Another run uses {folder}. Wait for it, end it, or choose another OUTPUT_DIR."
    with locked(Path(folder) / ".lock", PATIENCE, fix):
        yield
