"""Processes killed (SIGKILL) while they write checkpoints."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import torch
from trials import Trial

from gnws_d2 import files
from gnws_d2.checkpoint.files import read_checkpoint, write_checkpoint


def while_writing(rng: random.Random, folder: Path) -> str:
    """The file is whole after any kill, and the next write leaves nothing of the killed one."""
    file = folder / "model.pth"
    size = rng.choice((10, 100_000, 1_000_000))
    write_checkpoint(_content(0, size), file)
    child = os.fork()
    if child == 0:
        for number in range(1, 1 << 20):
            write_checkpoint(_content(number, size), file)
        os._exit(0)
    time.sleep(rng.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = read_checkpoint(file)
    if not torch.equal(found["tensor"], _content(found["number"], size)["tensor"]):
        return "the file is neither the old nor the new one"
    files._remove_stale.cache_clear()  # as a new process
    write_checkpoint(_content(0, size), file)
    left = sorted(f.name for f in folder.iterdir())
    return "" if left == ["model.pth"] else f"left: {left}"


def _content(number: int, size: int) -> dict[str, object]:
    return {"number": number, "tensor": torch.full((size,), float(number))}


CLASSES: dict[str, tuple[int, Trial]] = {"while a checkpoint is written": (100, while_writing)}
