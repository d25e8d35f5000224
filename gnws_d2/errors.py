"""Errors that a user can fix, and how commands report them: in one line, without a traceback."""

from __future__ import annotations

import argparse
import logging
import os
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEBUG_VARIABLE = "GNWS_D2_DEBUG"


class GnwsError(Exception):
    """An expected error: the message names the key, file or tensor, what was found, and the fix."""


class ConfigError(GnwsError, ValueError):
    """A config that cannot be read or cannot work."""


class DatasetError(GnwsError, ValueError):
    """A dataset or an image that cannot be used."""


class CheckpointError(GnwsError, RuntimeError):
    """A checkpoint that cannot be used."""


class FileError(GnwsError, OSError):
    """A file or folder that cannot be had or written, or that another process holds."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3


def shorten(value: object, *, quote: bool = True) -> str:
    """The ``repr`` of a value for an error message, or with ``quote=False`` a text itself: in one
    line, without control characters, of at most 400 characters before escaping."""
    if quote or not isinstance(value, str):
        text = _SHORT.repr(value)
    else:
        text = " ".join(value[:1000].split())
    text = text if len(text) <= 400 else f"{text[:400]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def add_debug_flag(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--debug``, which sets GNWS_D2_DEBUG=1 for this process and those it starts."""
    parser.add_argument(
        "--debug",
        action=_SetDebug,
        nargs=0,
        help=f"show the traceback of an error; ${DEBUG_VARIABLE}=1 does the same",
    )
    return parser


def is_debugging() -> bool:
    """Whether errors show their traceback."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


class _SetDebug(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        os.environ[DEBUG_VARIABLE] = "1"


@contextmanager
def one_line_errors(
    *also: type[Exception], reported_in: str | Path | None = None, is_relayed: bool = False
) -> Iterator[None]:
    """End the process with one line on stderr and exit code 1 on an expected error. A context
    manager, and a decorator for the ``main`` of a command.

    With GNWS_D2_DEBUG=1 the error is raised as usual.

    Args:
        also: exceptions that are expected, besides GnwsError.
        reported_in: a file that the first of several processes to report an error creates, with
            the line in it. It silences the others, which may fail in any way once one of them is
            gone.
        is_relayed: leave it to the reader of that file to print the line.
    """
    expected: tuple[type[Exception], ...] = (GnwsError, *also)
    file = Path(reported_in) if reported_in else None

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        is_known = isinstance(error, expected) or (file is not None and file.exists())
        return is_debugging() or not is_known

    # Detectron2's training loop logs the traceback of whatever ends it.
    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addFilter(is_news)
    try:
        yield
    except Exception as error:
        if is_debugging():
            raise
        if isinstance(error, expected):
            line = f"error: {_message(error)}"
            if file is None or (_create(file, line) and not is_relayed):
                sys.exit(line)
        if file and file.exists():
            sys.exit(1)
        raise
    finally:
        loop.removeFilter(is_news)


def _message(error: Exception) -> str:
    text = str(error)
    if "in DataLoader worker process" in text:
        # torch raises the error again in the main process, with the worker's traceback as its text.
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _create(file: Path, text: str) -> bool:
    """Whether this process is the one that created ``file``."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        return False
    return True
