"""Trials in processes of their own, each with a time limit: what hangs or crashes is counted."""

import importlib
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import BufferingHandler
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from gnws_d2.errors import GnwsError
from gnws_d2.files import CACHE_VARIABLE

LIMIT = 60.0  # seconds a trial, unless its corpus has another LIMIT
MEMORY = 16 << 30  # bytes of address space of a process
LONGEST = 2000  # characters of a message
LOST = ("silent", "hang", "crash", "traceback")
OUTCOMES = ("right", "refused", *LOST)  # the first two have survived

# What a trial does in a folder of its own: it returns why its result is wrong, "", or raises.
Trial = Callable[[random.Random, Path], str]


class Wrong(Exception):
    """A result that is wrong, where raising is simpler than returning."""


def trials(number: int, kind: str) -> Callable[[Trial], Trial]:
    """Add a function to the CLASSES of its module: (number of trials, trial) by name."""

    def add(trial: Trial) -> Trial:
        vars(sys.modules[trial.__module__]).setdefault("CLASSES", {})[kind] = number, trial
        return trial

    return add


def run(name: str, seed: int) -> tuple[str, str]:
    """Run a trial in a process of its own.

    Args:
        name: "CORPUS/CLASS/INDEX". The corpus is a module of this folder, with CLASSES.

    Returns:
        One of OUTCOMES, and the refusal or what is wrong.
    """
    limit = getattr(importlib.import_module(name.partition("/")[0]), "LIMIT", LIMIT)
    fork = multiprocessing.get_context("fork")  # with all imports done
    receiver, sender = fork.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        process = fork.Process(target=_run, args=(name, seed, Path(folder), sender))
        process.start()
        sender.close()
        try:
            if not receiver.poll(limit):
                return "hang", f"not at an end after {limit:g} s"
            return receiver.recv()
        except EOFError:
            process.join()
            return "crash", f"the process ended with code {process.exitcode}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that the trial has started
            process.kill()
            process.join()


def _run(name: str, seed: int, folder: Path, sender: Connection) -> None:
    os.setpgrp()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # of libraries that report before they crash
        os.dup2(null, descriptor)
    try:
        wrong = perform(name, seed, folder)
        outcome = ("silent", wrong) if wrong else ("right", "")
    except GnwsError as error:
        message = " ".join(str(error).split())
        outcome = "refused", message
        if not message or len(message) > LONGEST:
            outcome = "traceback", f"a message of {len(message)} characters: {message[:100]}"
    except Wrong as error:
        outcome = "silent", str(error)
    except BaseException as error:
        outcome = "traceback", f"{type(error).__name__}: {error}"[:300]
    sender.send(outcome)


def perform(name: str, seed: int, folder: Path) -> str:
    """Perform a trial in this process: why its result is wrong, or ""."""
    corpus, kind, _ = name.split("/")
    trial: Trial = importlib.import_module(corpus).CLASSES[kind][1]
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    return trial(random.Random(f"{seed}/{name}"), folder)


@contextmanager
def accepted(is_good: bool | None = True, *words: str) -> Iterator[None]:
    """The block has to use input that is good, and to refuse other with ``words``; None: either."""
    try:
        yield
    except GnwsError as error:
        if is_good or not all(word in str(error) for word in words):
            raise Wrong(f"refused: {error}") from error
        raise
    if is_good is False:
        raise Wrong("accepted")


@contextmanager
def unmade(made: Path) -> Iterator[None]:
    """Programs in the input, each of which makes ``made``, must not be executed by the block."""
    try:
        yield
    finally:
        if made.exists():
            raise Wrong("a program in the input was executed")


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what the block logs; a trial logs nothing else."""
    root, handler = logging.getLogger(), BufferingHandler(1 << 20)
    logging.disable(logging.NOTSET)
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        root.removeHandler(handler)


def damage(rng: random.Random, content: bytes, inserted: Sequence[bytes] = (b"\xff",)) -> bytes:
    """Flip bits, remove, repeat or insert bytes at one or a few places, or cut the end off."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        damaged = damaged or bytearray(1)
        i = rng.randrange(len(damaged))
        part = damaged[i : i + rng.choice((1, 10, 100, 1000, len(damaged)))]
        flipped = bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:]
        changes = (flipped, flipped, b"", part + part, rng.choice(inserted) + part)
        damaged[i : i + len(part)] = rng.choice(changes)
    return bytes(damaged)
