"""Hooks of training: which checkpoints are kept, early stopping, how fast estimated batch
statistics follow the batches, and ending on a signal, with a checkpoint to resume from."""

import json
import logging
import math
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.checkpoint import Checkpointer
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from ..errors import ConfigError
from ..files import atomic_write
from ..layers import EstimatedBatchNorm2d

logger = logging.getLogger(__name__)

# What "auto" looks for, in this order: the result of a model's last stage comes first.
MAIN_METRICS = (
    *("panoptic_seg/PQ", "segm/AP", "keypoints/AP"),
    *("sem_seg/mIoU", "sem_seg/IoU", "bbox/AP"),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches every process of a terminal, and a launcher passes it on to its own a moment later.
SAME_SIGNAL = 1.0  # seconds


class TrainingEnded(BaseException):
    """Raised by a hook to leave the training loop, which reports any Exception as a failure."""


class NewestCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which keeps the ``kept`` newest checkpoints (0 keeps all): also of those
    before a resume, and with model_final.pth as the last one. One is deleted when the next is
    complete. What an earlier run left in the folder stays."""

    def __init__(self, checkpointer: Checkpointer, period: int, kept: int) -> None:
        super().__init__(checkpointer, period, max_to_keep=kept or None)

    def before_train(self) -> None:
        super().before_train()
        files = Path(self.checkpointer.save_dir).glob("model_*.pth")
        named = ((re.fullmatch(r"model_(\d+)\.pth", file.name), file) for file in files)
        found = {int(match[1]): str(file) for match, file in named if match}
        self.recent_checkpoints = [found[i] for i in sorted(found) if i < self.trainer.start_iter]

    def step(self, iteration: int, **kwargs: Any) -> None:
        super().step(iteration, **kwargs)
        if self.max_to_keep and iteration >= self.trainer.max_iter - 1:
            for file in self.recent_checkpoints[self.max_to_keep - 1 :]:
                Path(file).unlink(missing_ok=True)


class BestCheckpointer(hooks.BestCheckpointer):
    """Keeps the weights of the best evaluation as model_best.pth, and ends training, as if it were
    complete, when evaluations no longer improve. Unlike Detectron2's hook, a resumed run knows the
    evaluations before it, from evaluations.json: {metric: [[iteration, value], ...]}.

    For all processes, after the hook that evaluates. Only the main process has results.

    Args:
        period: of the evaluation, in iterations.
        metric: such as "bbox/AP", in which more is better; "auto": see ``MAIN_METRICS``.
        first: of several test sets, that which "auto" looks at; "" where there is one.
        patience: how many evaluations without a better one end training; 0 for any number.
    """

    def __init__(
        self, period: int, checkpointer: Checkpointer, metric: str, first: str, patience: int
    ) -> None:
        super().__init__(period, checkpointer, metric)
        self._names = [metric]
        if metric == "auto":
            self._names = [f"{first}/{name}" if first else name for name in MAIN_METRICS]
        self._patience = patience
        self._file = Path(checkpointer.save_dir) / "evaluations.json"
        self._scores: dict[int, float] = {}  # iteration -> value

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start and comm.is_main_process() and self._file.is_file():
            ((name, scores),) = json.loads(self._file.read_text()).items()
            if name in self._names:
                self._scores = {iteration: v for iteration, v in scores if iteration < start}
        if self._patience and self._is_exhausted():  # a run that had ended so, resumed
            raise TrainingEnded

    def after_step(self) -> None:
        super().after_step()
        is_evaluated = self._patience and (self.trainer.iter + 1) % self._period == 0
        if is_evaluated and self._is_exhausted():
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            raise TrainingEnded

    def _best_checking(self) -> None:
        """Record the latest evaluation, and save the weights if it is the best one."""
        if not comm.is_main_process():
            return
        latest = self.trainer.storage.latest()
        name = next((name for name in self._names if name in latest), None)
        if name is None:
            tasks = (key for key in latest if "/" in key and not key.startswith("validation/"))
            found = ", ".join(key for key in tasks if "-" not in key)
            logger.warning(
                "TEST.BEST_METRIC is %r, which no evaluation yields: no model_best.pth is kept. "
                "Set it to one of %s.",
                *(self._val_metric, found or "the names in metrics.json"),
            )
            return
        iteration, value = min(self.trainer.iter, self.trainer.max_iter - 1), latest[name][0]
        self._scores[iteration] = value
        best = self._best()
        logger.info(
            "%s is %.4g after iteration %d. The best is %.4g, after iteration %d.",
            *(name, value, iteration, self._scores[best], best),
        )
        if best == iteration:
            self._checkpointer.save("model_best", iteration=iteration)
        with atomic_write(self._file) as partial:
            partial.write_text(json.dumps({name: list(self._scores.items())}))

    def _best(self) -> int:
        """The iteration of the best evaluation, the first of equal ones; -1 if there is none."""
        # A detector that finds nothing has no AP: it is worse than one that finds something.
        values = {i: -1.0 if math.isnan(value) else value for i, value in self._scores.items()}
        return max(values, key=values.__getitem__, default=-1)

    def _is_exhausted(self) -> bool:
        """Whether ``patience`` evaluations were not better, in all processes."""
        best = self._best()
        is_exhausted = sum(iteration > best for iteration in self._scores) >= self._patience
        if is_exhausted:
            logger.info(
                "Stopping early: SOLVER.EARLY_STOPPING is %d, and the best evaluation, %.4g, is "
                "that after iteration %d.",
                *(self._patience, self._scores[best], best),
            )
        return any(comm.all_gather(is_exhausted))


class MovingSpeed(HookBase):
    """Sets ``moving_speed`` of every EstimatedBatchNorm2d before each step, and logs it.

    It is MODEL.BCN.MOVING_SPEED; with MODEL.BCN.SCHEDULE "lr", times the factor by which the
    learning rate has fallen. A function of config and iteration alone, it needs no state to
    resume; the layers save what they were trained with.

    Raises:
        ConfigError: MODEL.BCN.MOVING_SPEED is unset or out of its range.
    """

    def __init__(self, cfg: CfgNode, layers: list[EstimatedBatchNorm2d]) -> None:
        if not 0 < cfg.MODEL.BCN.MOVING_SPEED <= 1:
            raise ConfigError(
                f"MODEL.BCN.MOVING_SPEED is {cfg.MODEL.BCN.MOVING_SPEED} (0 is unset), and the "
                "model has norms with estimated statistics, which follow the data by it. Set it to "
                'more than 0 and at most 1, such as 0.1, or choose the norm "BCN".'
            )
        self._cfg = cfg.clone()
        self._cfg.defrost()
        # While the learning rate is still small, the estimates have the longest way to go.
        self._cfg.SOLVER.WARMUP_ITERS = 0
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        self._lr_factor = build_lr_scheduler(self._cfg, optimizer)._multiplier
        self._layers = layers

    def before_step(self) -> None:
        speed = self._cfg.MODEL.BCN.MOVING_SPEED
        if self._cfg.MODEL.BCN.SCHEDULE == "lr":
            speed *= self._lr_factor(self.trainer.iter / self._cfg.SOLVER.MAX_ITER)
        for layer in self._layers:
            layer.moving_speed = speed
        self.trainer.storage.put_scalar("moving_speed", speed, smoothing_hint=False)


class StopOnSignal(HookBase):
    """On SIGINT or SIGTERM, finishes the iteration in all processes, saves a checkpoint, says how
    to resume, and exits with 128 + the signal. A second signal ends the process at once.

    The last hook of all processes: a checkpoint is complete when the others have run.

    Args:
        checkpointer: saves in the main process, which is given the trainer to save.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._received = 0
        self._when = 0.0
        self._former: dict[int, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def after_train(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def after_step(self) -> None:
        number, iteration = max(comm.all_gather(self._received)), self.trainer.iter
        if not number or iteration + 1 >= self.trainer.max_iter:  # which is saved anyway
            return
        name = f"model_{iteration:07d}"
        if comm.is_main_process():
            self._checkpointer.save(name, iteration=iteration)
            logger.info(
                "Stopped by %s after iteration %d of %d. To continue from %s.pth in %s, run "
                "the same command with --resume.",
                *(signal.Signals(number).name, iteration, self.trainer.max_iter),
                *(name, self._checkpointer.save_dir),
            )
        if comm.get_world_size() > 1:
            comm.synchronize()
            # The launcher may end those that are slower to leave.
            self._former = dict.fromkeys(self._former, signal.SIG_IGN)
            self.after_train()
        raise SystemExit(128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._received and self.trainer.iter < self.trainer.max_iter:
            self._received, self._when = number, now
            if comm.is_main_process():  # not by a logger, which the signal may have interrupted
                os.write(2, b"Stopping after this iteration; a second signal ends at once.\n")
        elif now - self._when > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
