"""Warnings that a user can do nothing about, or has seen."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Of Detectron2's code with today's torch, and of matplotlib where its font lacks the letters of a
# class: how they begin.
WARNINGS = (
    *("The given NumPy array is not writable", "torch.meshgrid", "`torch.cuda.amp.GradScaler"),
    *("`torch.jit.script` is deprecated", "Glyph "),
)
LOGGERS = ("torch.utils.cpp_extension", "torch.fx._symbolic_trace")


def silence_upstream() -> None:
    """Hide them in this process and in those that it starts."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(message))
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{text}" for text in WARNINGS))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence all warnings, logged ones, too."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
