"""Detectron2's setup of a run, and what of it a user sees: the log file has everything."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .launch import limit_waiting

# Long, and the same in every run.
IN_LOG_FILE_ONLY = (
    *("Environment info:", "Contents of args.config_file", "Running with full config:"),
    "Model:",
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
            if isinstance(handler.formatter, _Wrapped):
                continue
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setFormatter(_Shortened(handler.formatter, Path(output) / "log.txt"))
            else:
                handler.setFormatter(_Uncolored(handler.formatter))


def silence_upstream() -> None:
    """Hide warnings about code that is not the user's, in this process."""
    for message in UPSTREAM_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in UPSTREAM_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("detectron2.engine.defaults").addFilter(_is_not_the_scaling)


def _is_not_the_scaling(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Auto-scaling")  # a table of ours says more


class _Wrapped(logging.Formatter):
    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return self._formatter.format(record)


class _Shortened(_Wrapped):
    """Leaves of ``IN_LOG_FILE_ONLY`` the first line."""

    def __init__(self, formatter: logging.Formatter | None, file: Path) -> None:
        super().__init__(formatter)
        self._file = file

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not record.getMessage().startswith(IN_LOG_FILE_ONLY) or "\n" not in text:
            return text
        first, *rest = text.splitlines()
        return f"{first} {len(rest)} lines in {self._file}"


class _Uncolored(_Wrapped):
    """Detectron2 colors the config that it logs, also for the file."""

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[\d;]*m", "", super().format(record))
