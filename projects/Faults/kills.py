"""Processes killed while they write checkpoints, and whole trainings, which are then resumed."""

from __future__ import annotations

import functools
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
import training
from trials import Trial

from gnws_d2.checkpoint.serialization import read_checkpoint, write_checkpoint


def while_writing(rng: random.Random, folder: Path) -> str:
    """The file is whole after any kill, and the next write leaves nothing of the killed one."""
    file = folder / "model.pth"
    size = rng.choice((10, 100_000, 1_000_000))
    child = os.fork()
    if child == 0:
        for number in range(1 << 20):
            write_checkpoint(content(number, size), file)
        os._exit(0)
    while not file.exists():
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = read_checkpoint(file)
    if not torch.equal(found["tensor"], content(found["number"], size)["tensor"]):
        return "the file is neither the old nor the new one"
    write_checkpoint(content(0, size), file)
    left = sorted(f.name for f in folder.iterdir())
    return "" if left == ["model.pth"] else f"left: {left}"


def content(number: int, size: int) -> dict[str, object]:
    return {"number": number, "tensor": torch.full((size,), float(number))}


@functools.cache
def prepare() -> tuple[dict, float]:
    """What an undisturbed training ends with, and the seconds it takes."""
    output = Path(tempfile.mkdtemp(prefix="faults_training_")) / "output"
    began = time.monotonic()
    checkpoint = training.finish([output], [training.start(output)])
    return checkpoint, time.monotonic() - began


def whole_trainings(rng: random.Random, folder: Path) -> str:
    """Stopped once or twice at any moment and resumed, it ends with the same checkpoint."""
    expected, seconds = prepare()
    output = folder / "output"
    for _ in range(rng.randint(1, 2)):
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        process = training.start(output)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        code = process.wait()
        if code not in (0, -number, 128 + number):
            return f"{number.name} ends it with code {code}: {training.said(output)[-500:]}"
    return training.compare(training.finish([output], [training.start(output)]), expected)


LIMIT = training.LIMIT
CLASSES: dict[str, tuple[int, Trial]] = {
    "while a checkpoint is written": (100, while_writing),
    "whole trainings": (4, whole_trainings),
}
