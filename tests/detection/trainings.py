"""Short trainings with ``train_net.py`` on the small Digits, in processes of their own."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tiny import FEW_PROPOSALS, TINY

CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
TRAIN_NET = Path(__file__).parents[2] / "projects" / "Detection" / "train_net.py"
FORKED = Path(__file__).with_name("forked_train_net.py")
LAST = 11  # iteration
# A drawn size, workers of the data loader and a falling learning rate, which resuming continues.
STEPS = [
    *("SOLVER.MAX_ITER", str(LAST + 1), "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.STEPS", "(8,)"),
    *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
    *("DATALOADER.NUM_WORKERS", "1", "DATASETS.TEST", "()"),
]
ONE_STEP = ["SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "0.01"]


def command(
    output: Path, *opts: object, flags: Sequence[str] = (), program: Path = FORKED
) -> list[object]:
    """The words after ``python`` of a training into ``output``."""
    tiny = [*TINY, *FEW_PROPOSALS, "MODEL.DEVICE", "cpu", *opts, "OUTPUT_DIR", output]
    return [program, "--config-file", CONFIG, *flags, *tiny]


def result(output: Path) -> dict[str, Any]:
    """The final checkpoint, without what names its folder."""
    content = torch.load(output / "model_final.pth", weights_only=True)
    return {key: content[key] for key in ("model", "trainer", "iteration")}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two checkpoints are equal, bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def wait_for(
    condition: Callable[[], bool], process: BaseProcess | None = None, seconds: float = 300
) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it took too long"
        assert process is None or process.is_alive(), "it ended early"
        time.sleep(0.02)
