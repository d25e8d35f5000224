"""Detectron2's setup of a run, and what of its log a user sees."""

import argparse
import logging
import re
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from detectron2.utils.logger import setup_logger

from gnws.upstream import silence_upstream
from gnws_d2 import Predictor
from gnws_d2.config import config_text

logger = logging.getLogger("gnws_d2")

# Long and the same in every run; the scaling is shown by a table of ours.
IN_LOG_FILE_ONLY = (
    *("Environment info:", "Contents of args.config_file", "Running with full config:"),
    *("Full config saved to", "Model:", "Auto-scaling the config", "Command line arguments:"),
    *("Serializ", "[DatasetMapper]", "Distribution of instances", "Fast COCO eval"),
    *("Start inference", "Total inference", "Preparing results", "Saving results to"),
    *("Evaluating predictions", "COCO's summary:", "copypaste:", "Per-category"),
    "Saving checkpoint",
    *("Rank of current process", "Using training sampler", "Some metrics cannot", "Report: "),
)
PROGRESS = 30.0  # seconds between two lines of an evaluation
FIRST = (1, 2, 5, 10)  # iterations whose losses are printed
EVALUATION = 0.4  # of the time of an image in training, as measured with configs/Small


class FirstIterations(engine.HookBase):
    """Prints the losses of the first iterations, with which Detectron2's writer begins at the 20th,
    and after the last of them how long the run takes.

    Args:
        images: of which there are evaluations: their number, by that of images in a training step.
        period: iterations from one evaluation to the next.
    """

    def __init__(self, images: float = 0, period: int = 0) -> None:
        self._images, self._period = images, period
        self._ended: list[float] = []  # when an iteration has ended

    def before_train(self) -> None:
        self._printer = CommonMetricPrinter(self.trainer.max_iter)

    def after_step(self) -> None:
        done = self.trainer.iter + 1 - self.trainer.start_iter
        left = self.trainer.max_iter - self.trainer.iter - 1
        if done > FIRST[-1]:
            return
        self._ended.append(time.perf_counter())
        if done not in FIRST or not left:
            return
        self._printer.write()
        if done == FIRST[-1]:
            step = float(np.median(np.diff(self._ended)))
            count = left // self._period + 1 if self._period and self._images else 0
            seconds = left * step + count * self._images * step * EVALUATION
            logger.info(
                "About %.2g minutes to go: %d iterations of %.2g s%s. Ctrl-C saves a checkpoint, "
                "from which --resume goes on.",
                *(seconds / 60, left, step, f", {count} evaluations" if count else ""),
            )


def evaluation_folder(folder: str, is_chosen: bool = True) -> str:
    """Where an evaluation writes, which changes no run.

    Args:
        folder: OUTPUT_DIR, or that of the weights.
        is_chosen: the user named it, also by naming a config. It is taken as it is, unless it
            holds a training run.
    """
    is_run = any(Path(folder, name).exists() for name in ("last_checkpoint", "metrics.json"))
    return str(Path(folder, "eval")) if is_run or not is_chosen else folder


def first_threshold(predictor: Predictor) -> float:
    """The lowest score to show as long as nobody has chosen one."""
    suggested = predictor.suggested_threshold
    if suggested is None:
        return 0.5
    logger.info("Detections are shown with scores from %.2f, which the report suggests.", suggested)
    return suggested


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """``detectron2.engine.default_setup``, which shows the environment, the config and the model
    in OUTPUT_DIR/log.txt alone, without color codes, and saves a config.yaml that any Detectron2
    program reads. From here on, processes wait for each other as long as the config says.

    Args:
        cfg: a CfgNode or LazyConfig.
    """
    is_lazy = not isinstance(cfg, CfgNode)
    # A saved config lacks the keys that have their default values.
    timeout = cfg.train.get("process_timeout") if is_lazy else cfg.SOLVER.get("PROCESS_TIMEOUT")
    if timeout is not None:
        limit_waiting(timeout)
    setup_loggers(cfg.train.output_dir if is_lazy else cfg.OUTPUT_DIR)
    engine.default_setup(cfg, args)
    if not is_lazy and comm.is_main_process():
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(config_text(cfg), encoding="utf-8")


def limit_waiting(seconds: float) -> None:
    """Let operations between processes fail when one waits longer than this for the others."""
    if comm.get_world_size() > 1:
        for group in (None, comm._LOCAL_PROCESS_GROUP, comm._get_global_gloo_group()):
            # torch's own setter is private; torchtitan uses it in the same way.
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def setup_loggers(output: str) -> None:
    """Log to the terminal and to log.txt in the folder ``output``, as above; for what is logged
    before :func:`default_setup`."""
    silence_upstream()  # also in a process that torch has started
    for name in ("fvcore", "gnws_d2", "detectron2"):
        # With the arguments that default_setup has: the second call returns the same logger.
        more = {} if name == "detectron2" else {"name": name}
        logger = setup_logger(output, distributed_rank=comm.get_rank(), **more)
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(_short)
    logging.getLogger("detectron2").addFilter(_uncolored)


class _Short(logging.Filter):
    """What is shown on the terminal."""

    _shown = 0.0  # when a line of an evaluation was shown, or it began

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(("Start inference", "Inference done")):
            if text.startswith("Inference") and record.created - self._shown < PROGRESS:
                return False
            self._shown = record.created
        return not text.startswith(IN_LOG_FILE_ONLY) and not text.endswith("in csv format:")


_short = _Short()


def _uncolored(record: logging.LogRecord) -> bool:
    """Detectron2 colors the config that it logs, also for the file."""
    record.msg = re.sub(r"\x1b\[[\d;]*m", "", str(record.msg))
    return True
