"""The best checkpoint of a run by a metric of its evaluations, and ending a run that no longer
improves."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from ..files import atomic_write
from .stopping import TrainingEnded

logger = logging.getLogger(__name__)

# What "auto" looks for, in this order: the result of a model's last stage comes first.
MAIN_METRICS = (
    *("panoptic_seg/PQ", "segm/AP", "keypoints/AP"),
    *("sem_seg/mIoU", "sem_seg/IoU", "bbox/AP"),
)
SCORES = "evaluations.json"


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
