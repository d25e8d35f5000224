"""Detectron2's setup of a run: what of its log a user sees, and the lock of its output folder."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..files import locked
from .launch import limit_waiting

PATIENCE = 3.0  # seconds that a process that was killed may take to be gone

# Long and the same in every run; the scaling is shown by a table of ours.
IN_LOG_FILE_ONLY = (
    *("Environment info:", "Contents of args.config_file", "Running with full config:"),
    *("Full config saved to", "Model:", "Auto-scaling the config"),
)
# A user can do nothing about them: of Detectron2's code with today's torch, and of matplotlib where
# its font lacks the letters of a class.
UPSTREAM_WARNINGS = (
    "The given NumPy array is not writable",
    "torch.meshgrid: in an upcoming release",
    r"`torch\.cuda\.amp\.GradScaler",
    "Glyph .* missing",
)
UPSTREAM_LOGGERS = ("torch.utils.cpp_extension", "torch.fx._symbolic_trace")


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """``detectron2.engine.default_setup``, which shows the environment, the config and the model
    in OUTPUT_DIR/log.txt alone, without color codes, and no warnings about Detectron2's own code.
    From here on, processes wait for each other as long as the config says.

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


def setup_loggers(output: str) -> None:
    """Log to the terminal and to log.txt in the folder ``output``, as above; for what is logged
    before :func:`default_setup`."""
    silence_upstream()
    for name in ("fvcore", "gnws_d2", "detectron2"):
        # With the arguments that default_setup has: the second call returns the same logger.
        more = {} if name == "detectron2" else {"name": name}
        logger = setup_logger(output, distributed_rank=comm.get_rank(), **more)
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(_is_short)


@contextmanager
def locked_output(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of ``folder`` for the time of the block: two would mix their checkpoints.
    Only the main process takes the lock, as often as it asks for it.

    Raises:
        FileError: another run has it; the message names its process and machine.
    """
    if not comm.is_main_process():
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    fix = f"Another run uses {folder}. Wait for it, end it, or choose another OUTPUT_DIR."
    with locked(Path(folder) / ".lock", PATIENCE, fix):
        yield


def silence_upstream() -> None:
    """Hide warnings about code that is not the user's, in this process."""
    for message in UPSTREAM_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in UPSTREAM_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("detectron2").addFilter(_uncolored)


def _is_short(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(IN_LOG_FILE_ONLY)


def _uncolored(record: logging.LogRecord) -> bool:
    """Detectron2 colors the config that it logs, also for the file."""
    record.msg = re.sub(r"\x1b\[[\d;]*m", "", str(record.msg))
    return True
