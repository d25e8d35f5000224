"""Errors that a user can fix, and how commands report them: in one line, without a traceback."""

import logging
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

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


EXPECTED = (GnwsError, torch.OutOfMemoryError)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel = 3


def shorten(value: object, *, quote: bool = True) -> str:
    """The ``repr`` of a value for an error message, or with ``quote=False`` a text itself: in one
    line, without control characters, of at most 500 characters before escaping."""
    if quote or not isinstance(value, str):
        text = _SHORT.repr(value)
    else:
        text = " ".join(value[:1000].split())
    text = text if len(text) <= 500 else f"{text[:500]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def missing_package(error: ModuleNotFoundError) -> tuple[str, str]:
    """The name of the package that did not import, and a sentence without its period on how to
    install it."""
    package = str(error.name).partition(".")[0]
    return package, f"Install it: pip install {package}"


def is_debugging() -> bool:
    """Whether errors show their traceback."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def one_line(error: Exception) -> str:
    """What a command prints of an expected error."""
    text = str(error)
    if "in DataLoader worker process" in text:
        # torch raises the error again in the main process, with the worker's traceback as its text.
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    if isinstance(error, torch.OutOfMemoryError):
        text = (
            f"{text.partition(' Including')[0]} Set SOLVER.AMP.ENABLED True, smaller INPUT sizes, "
            "SOLVER.ACCUMULATION_STEPS 2, or MODEL.GN.RECOMPUTE_CONVOLUTIONS True."
        )
    return "error: " + " ".join(line.strip() for line in text.splitlines() if line.strip())


@contextmanager
def one_line_errors(*also: type[Exception]) -> Iterator[None]:
    """End the process with one line on stderr and exit code 1 on an error of EXPECTED or ``also``.
    A context manager, and a decorator for the ``main`` of a command.

    With GNWS_D2_DEBUG=1 the error is raised as usual.
    """
    expected: tuple[type[Exception], ...] = (*EXPECTED, *also)
    with not_logged(lambda error: isinstance(error, expected)):
        try:
            yield
        except expected as error:
            if is_debugging():
                raise
            sys.exit(one_line(error))


@contextmanager
def not_logged(is_known: Callable[[BaseException | None], bool]) -> Iterator[None]:
    """Keep known errors out of the log of Detectron2's training loop, which logs the traceback of
    whatever ends it."""

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return is_debugging() or not is_known(error)

    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addFilter(is_news)
    try:
        yield
    finally:
        loop.removeFilter(is_news)
