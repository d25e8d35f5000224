"""What Detectron2 logs at the start of a program, kept out of the terminal."""

from __future__ import annotations

import logging
import sys

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

# Hundreds of lines in all: environment, arguments, config (in colors) and model.
_LONG = (
    *("Rank of current process", "Environment info", "Command line arguments"),
    *("Contents of args.config_file", "Running with full config", "Model:\n"),
)


def setup_loggers(output_dir: str) -> None:
    """Log to the terminal and to log.txt in ``output_dir``. Detectron2's long descriptions of
    environment, config and model go to the file alone."""
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="gnws_d2")
    logger = setup_logger(output_dir, distributed_rank=rank)
    for handler in logger.handlers:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(_is_short)


def _is_short(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LONG)
