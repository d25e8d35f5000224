"""Short trainings in processes of their own, killed at any moment and resumed."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from trials import Trial, Wrong

PROGRAM = Path(__file__).resolve().parents[1] / "Detection" / "train_net.py"
OPTS = (
    *("--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "--resume"),
    *("SOLVER.MAX_ITER", "24", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.REFERENCE_WORLD_SIZE", "0", "SEED", "7", "DATASETS.TEST", "()"),
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[48],[64]]"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
)


def start(
    output: Path, *opts: str, env: Mapping[str, str] = {}, through: Sequence[str] = ()
) -> subprocess.Popen:
    """Start or resume a training on Digits. What it prints replaces ``output``.txt.

    Args:
        opts: overrides of the config.
        env: of the process, as torchrun sets it.
        through: the command that starts the process.
    """
    data = ("DATASETS.TRAIN", str((str(datasets.prepare() / "digits_train.json"),)))
    words = [*through, sys.executable, str(PROGRAM), *OPTS, *data, *opts, "OUTPUT_DIR", str(output)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    with open(f"{output}.txt", "w") as printed:
        return subprocess.Popen(words, env=env, stdout=printed, stderr=printed)


def said(output: Path) -> str:
    return Path(f"{output}.txt").read_text(encoding="utf-8")


def finish(output: Path, *processes: subprocess.Popen) -> dict[str, Any]:
    """The last checkpoint of a training, without what the file says about itself."""
    codes = [process.wait() for process in processes]
    if any(codes):
        raise Wrong(f"ended with {codes}: {said(output)[-500:]}")
    content = torch.load(output / "model_final.pth", weights_only=True)
    return {key: content[key] for key in ("model", "trainer", "iteration")}


def compare(found: dict[str, Any], expected: dict[str, Any]) -> str:
    try:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    except AssertionError as error:
        return f"another checkpoint: {error}"
    return ""


@functools.cache
def prepare() -> tuple[dict[str, Any], float]:
    """What an undisturbed training ends with, and the seconds it takes."""
    output = Path(tempfile.mkdtemp(prefix="faults_training_")) / "output"
    began = time.monotonic()
    checkpoint = finish(output, start(output))
    return checkpoint, time.monotonic() - began


def killed(rng: random.Random, folder: Path) -> str:
    """Stopped once or twice at any moment and resumed, it ends with the same checkpoint."""
    expected, seconds = prepare()
    output = folder / "output"
    for _ in range(rng.randint(1, 2)):
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        process = start(output)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        code = process.wait()
        if code not in (0, -number, 128 + number):
            return f"{number.name} ends it with code {code}: {said(output)[-500:]}"
    return compare(finish(output, start(output)), expected)


LIMIT = 600.0
CLASSES: dict[str, tuple[int, Trial]] = {"killed and resumed": (4, killed)}
