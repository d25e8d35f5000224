"""What a user sees of a running training: a bar on a terminal, and its first iterations at once."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOGGERS = ("detectron2", "fvcore", "gnws_d2")
FIRST = (1, 2, 5, 10)


class FirstIterations(HookBase):
    """Prints the losses of the first iterations; Detectron2's writer begins with the 20th."""

    def before_train(self) -> None:
        self._printer = CommonMetricPrinter(self.trainer.max_iter)

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if following - self.trainer.start_iter in FIRST and following < self.trainer.max_iter:
            self._printer.write()


class ProgressBar(HookBase):
    """A bar with epoch, loss and remaining time on a terminal, above which the log goes on without
    the lines that repeat them; nothing where standard error is not a terminal.

    Args:
        epoch: the number of iterations in an epoch; 0 is not known.
    """

    def __init__(self, epoch: float = 0.0) -> None:
        self._epoch = epoch
        self._bar: tqdm | None = None
        self._undo = ExitStack()

    def before_train(self) -> None:
        if not sys.stderr.isatty():
            return
        loggers = [logging.getLogger(name) for name in LOGGERS]
        self._undo.enter_context(logging_redirect_tqdm(loggers))
        for logger in loggers:
            for handler in logger.handlers:
                if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                    handler.addFilter(_is_not_progress)
        start, end = self.trainer.start_iter, self.trainer.max_iter
        self._bar = tqdm(initial=start, total=end, unit="it", dynamic_ncols=True)
        self._undo.callback(self._bar.close)

    def after_step(self) -> None:
        if self._bar is None:
            return
        latest = self.trainer.storage.latest()
        if self._epoch:
            epochs = [n / self._epoch for n in (self.trainer.iter + 1, self.trainer.max_iter)]
            self._bar.set_description("epoch {:.1f}/{:.4g}".format(*epochs), refresh=False)
        if "total_loss" in latest:
            self._bar.set_postfix_str(f"loss {latest['total_loss'][0]:.4g}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._undo.close()


def _is_not_progress(record: logging.LogRecord) -> bool:
    return not record.name.endswith(".utils.events")
