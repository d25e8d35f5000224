"""Ending a run before its last iteration: on a signal, with a checkpoint to resume from."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches every process of a terminal, and a launcher passes it on to its own a moment later.
SAME_SIGNAL = 1.0  # seconds


class TrainingEnded(BaseException):
    """Raised by a hook to leave the training loop, which reports any Exception as a failure."""


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
