"""Short trainings in processes of their own, to be disturbed."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import source
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from gnws_d2.engine import launch
from gnws_d2.projects.detection import train_net

NAME = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
OPTS = [
    *("SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.REFERENCE_WORLD_SIZE", "0", "SEED", "7", "DATASETS.TEST", "()"),
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[48],[64]]"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
]


def start(
    output: Path,
    *words: str,
    env: Mapping[str, str] = {},
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Start ``train_net.py --resume`` on Digits with the text that it prints in ``output``.txt.

    Args:
        words: overrides of the config.
        env: of the process, as torchrun sets it.
        prepare: runs first in the process.

    Returns:
        Its ID.
    """
    data = source()  # made in this process, for all that it starts
    output.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
        said = os.open(f"{output}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        os.environ.update(env)
        prepare()
        datasets = ["DATASETS.TRAIN", str((str(data / "digits_train.json"),))]
        words = ("--config-file", NAME, "--resume", *OPTS, *datasets, *words)
        args = train_net.argument_parser().parse_args([*words, "OUTPUT_DIR", str(output)])
        launch(train_net.main, 1, args=(args,))
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a process; negative for a signal that it died of."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(output: Path) -> str:
    return Path(f"{output}.txt").read_text(encoding="utf-8")


def final(output: Path) -> dict[str, Any]:
    """The last checkpoint, without what the file says about itself."""
    content = torch.load(output / "model_final.pth", weights_only=True)
    return {key: content[key] for key in ("model", "trainer", "iteration")}


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
