"""Hooks of training: the first losses, the best checkpoint, early stopping, and how fast estimated
batch statistics follow the batches."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import torch
from detectron2.checkpoint import Checkpointer
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from torch import nn

from ..errors import ConfigError
from ..files import atomic_write
from ..layers import EstimatedBatchNorm2d
from .stopping import TrainingEnded

logger = logging.getLogger(__name__)

# What "auto" looks for, in this order: the result of a model's last stage comes first.
MAIN_METRICS = (
    *("panoptic_seg/PQ", "segm/AP", "keypoints/AP"),
    *("sem_seg/mIoU", "sem_seg/IoU", "bbox/AP"),
)
FIRST = (1, 2, 5, 10)  # iterations whose losses are printed


class FirstIterations(HookBase):
    """Prints the losses of the first iterations; Detectron2's writer begins with the 20th."""

    def before_train(self) -> None:
        self._printer = CommonMetricPrinter(self.trainer.max_iter)

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if following - self.trainer.start_iter in FIRST and following < self.trainer.max_iter:
            self._printer.write()


class BestCheckpointer(HookBase):
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
        self._period = period
        self._checkpointer = checkpointer
        self._metric = metric
        self._first = f"{first}/" if first else ""
        self._patience = patience
        self._file = Path(checkpointer.save_dir) / "evaluations.json"
        self._scores: dict[int, float] = {}  # iteration -> value

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start and comm.is_main_process() and self._file.is_file():
            ((name, scores),) = json.loads(self._file.read_text()).items()
            if self._metric in ("auto", name):
                self._scores = {iteration: v for iteration, v in scores if iteration < start}
        if self._is_exhausted():  # a run that had ended so, resumed
            raise TrainingEnded

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if not self._period or following % self._period or following == self.trainer.max_iter:
            return
        self._check()
        if self._is_exhausted():
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            raise TrainingEnded

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # as the hook that evaluates
            self._check()

    def _check(self) -> None:
        """Record the latest evaluation, and save the weights if it is the best one."""
        if not comm.is_main_process():
            return
        latest = self.trainer.storage.latest()
        names = [self._metric]
        if self._metric == "auto":
            names = [self._first + name for name in MAIN_METRICS]
        name = next((name for name in names if name in latest), None)
        if name is None:
            found = ", ".join(key for key in latest if "/" in key and "-" not in key)
            logger.warning(
                "TEST.BEST_METRIC is %r, which no evaluation yields: no model_best.pth is kept. "
                "Set it to one of %s.",
                *(self._metric, found or "the names in metrics.json"),
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
        # A detector that finds nothing has no AP.
        values = {i: 0.0 if math.isnan(value) else value for i, value in self._scores.items()}
        return max(values, key=values.__getitem__, default=-1)

    def _is_exhausted(self) -> bool:
        """Whether ``patience`` evaluations were not better, in all processes."""
        if not self._patience:
            return False
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
        self._speed = self._cfg.MODEL.BCN.MOVING_SPEED
        if self._cfg.MODEL.BCN.SCHEDULE == "lr":
            self._speed *= self._lr_factor(self.trainer.iter / self._cfg.SOLVER.MAX_ITER)
        for layer in self._layers:
            layer.moving_speed = self._speed

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("moving_speed", self._speed, smoothing_hint=False)
