"""Short trainings in processes of their own, to be disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from trials import Wrong

LIMIT = 600.0  # seconds a trial
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
    with open(f"{output}.txt", "w") as said_file:
        return subprocess.Popen(words, env=env, stdout=said_file, stderr=said_file)


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Wait until it holds, or the process ends."""
    while not condition() and process.poll() is None:
        time.sleep(0.02)


def said(output: Path) -> str:
    return Path(f"{output}.txt").read_text(encoding="utf-8")


def finish(outputs: Sequence[Path], processes: Sequence[subprocess.Popen]) -> dict[str, Any]:
    """The last checkpoint of a training, without what the file says about itself."""
    codes = [process.wait() for process in processes]
    if any(codes):
        raise Wrong(f"ended with {codes}: {said(outputs[0])[-500:]}")
    content = torch.load(outputs[0] / "model_final.pth", weights_only=True)
    return {key: content[key] for key in ("model", "trainer", "iteration")}


def compare(one: Any, other: Any) -> str:
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    except AssertionError as error:
        return f"another checkpoint: {error}"
    return ""
