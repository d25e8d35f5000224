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
from detectron2.engine import HookBase, hooks
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from fvcore.common.param_scheduler import ConstantParamScheduler, ParamScheduler
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
SCORES = "evaluations.json"
FIRST = (1, 2, 5, 10)  # iterations whose losses are printed


class FirstIterations(HookBase):
    """Prints the losses of the first iterations; Detectron2's writer begins with the 20th."""

    def before_train(self) -> None:
        self._printer = CommonMetricPrinter(self.trainer.max_iter)

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if following - self.trainer.start_iter in FIRST and following < self.trainer.max_iter:
            self._printer.write()


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, resumable: it keeps the weights of the best evaluation as model_best.pth,
    and the values of all of them as evaluations.json, {metric: [[iteration, value], ...]}.

    For the main process alone, after the hook that evaluates.

    Args:
        period: of the evaluation, in iterations.
        metric: such as "bbox/AP", in which more is better; "auto": see ``MAIN_METRICS``.
        first: of several test sets, that which "auto" looks at; "" where there is one.
    """

    def __init__(
        self, period: int, checkpointer: Checkpointer, metric: str, first: str = ""
    ) -> None:
        super().__init__(period, checkpointer, metric)
        self._wanted = metric
        self._prefix = f"{first}/" if first else ""
        self._file = Path(checkpointer.save_dir) / SCORES
        self._scores: list[tuple[int, float]] = []

    @property
    def evaluations_since_best(self) -> int:
        """How many evaluations there were after the best one."""
        best = -1 if self.best_iter is None else self.best_iter
        return sum(iteration > best for iteration, _ in self._scores)

    def before_train(self) -> None:
        """Go on from the evaluations before the first iteration of a resumed run."""
        start = self.trainer.start_iter
        if not start or not self._file.is_file():
            return
        ((self._val_metric, scores),) = json.loads(self._file.read_text()).items()
        if self._wanted not in ("auto", self._val_metric):
            return
        self._scores = [(iteration, value) for iteration, value in scores if iteration < start]
        for iteration, value in self._scores:
            if self.best_metric is None or self._compare(value, self.best_metric):
                self._update_best(value, iteration)

    def _update_best(self, val: float, iteration: int) -> bool:
        # A detector that finds nothing has no AP; without any better, that is kept, too.
        return super()._update_best(0.0 if math.isnan(val) else val, iteration)

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest()
        wanted = [self._wanted]
        if self._wanted == "auto":
            wanted = [self._prefix + name for name in MAIN_METRICS]
        name = next((name for name in wanted if name in latest), None)
        if name is None:
            found = ", ".join(key for key in latest if "/" in key and "-" not in key)
            logger.warning(
                "TEST.BEST_METRIC is %r, which no evaluation yields: no model_best.pth is kept. "
                "Set it to one of %s.",
                *(self._wanted, found or "the names in metrics.json"),
            )
            return
        self._val_metric = name
        super()._best_checking()
        value, iteration = latest[name]
        self._scores.append((iteration, value))
        with atomic_write(self._file) as partial:
            partial.write_text(json.dumps({name: self._scores}))


class EarlyStopping(HookBase):
    """Ends training, as if it were complete, after ``patience`` evaluations without a better one.

    For all processes, after the other hook.

    Args:
        period: of the evaluation, in iterations.
        best: in the main process alone.
    """

    def __init__(self, period: int, patience: int, best: BestCheckpointer | None) -> None:
        self._period = period
        self._patience = patience
        self._best = best

    def before_train(self) -> None:
        if self._is_due():  # a run that had ended so, resumed
            raise TrainingEnded

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if not self._period or following % self._period or following == self.trainer.max_iter:
            return
        if self._is_due():
            if self._best is not None:
                self._best._checkpointer.save("model_final", iteration=self.trainer.iter)
            raise TrainingEnded

    def _is_due(self) -> bool:
        best = self._best
        due = best is not None and best.evaluations_since_best >= self._patience
        if best is not None and due:
            logger.info(
                "Stopping early: SOLVER.EARLY_STOPPING is %d, and the best %s, %.4g, is that of "
                "iteration %d.",
                *(self._patience, best._val_metric, best.best_metric, best.best_iter),
            )
        return any(comm.all_gather(due))


class MovingSpeed(HookBase):
    """Sets ``moving_speed`` of every EstimatedBatchNorm2d before each step, and logs it.

    It is MODEL.BCN.MOVING_SPEED; with MODEL.BCN.SCHEDULE "lr", times the factor by which the
    learning rate has fallen. A function of config and iteration alone, it needs no state to
    resume; the layers save what they were trained with.

    Raises:
        ConfigError: MODEL.BCN.MOVING_SPEED is unset.
    """

    def __init__(self, cfg: CfgNode, layers: list[EstimatedBatchNorm2d]) -> None:
        self._layers = layers
        self._base = cfg.MODEL.BCN.MOVING_SPEED
        self._max_iter = cfg.SOLVER.MAX_ITER
        follows = cfg.MODEL.BCN.SCHEDULE == "lr"
        self._factor = lr_decay(cfg) if follows else ConstantParamScheduler(1.0)
        self._current = 0.0
        if not self._base:
            raise ConfigError(
                "MODEL.BCN.MOVING_SPEED is 0 (unset), and the model has norms with estimated "
                "statistics, which would never follow the data. Set it to more than 0 and at most "
                '1, such as 0.1, or choose the norm "BCN".'
            )

    def before_step(self) -> None:
        speed = self._base * self._factor(self.trainer.iter / self._max_iter)
        if speed != self._current:
            for layer in self._layers:
                layer.moving_speed = speed
            self._current = speed

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("moving_speed", self._current, smoothing_hint=False)


def lr_decay(cfg: CfgNode) -> ParamScheduler:
    """The learning rate as a fraction of SOLVER.BASE_LR, without its warm-up: while the learning
    rate is still small, the estimates have the longest way to go.

    Returns:
        A function of iteration / SOLVER.MAX_ITER.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.WARMUP_ITERS = 0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return build_lr_scheduler(cfg, optimizer)._multiplier
