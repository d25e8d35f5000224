"""Trials in processes of their own, each with a time limit: what hangs or crashes is counted."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import random
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch

from gnws_d2.errors import GnwsError

# Seconds a trial, unless its corpus has another LIMIT; the first of a process also makes what all
# need.
LIMIT = 60.0
MEMORY = 16 << 30  # bytes of address space of a process
LONGEST = 2000  # characters of a message
SURVIVED = ("right", "refused")
OUTCOMES = (*SURVIVED, "silent", "hang", "crash", "traceback")

# What a trial does in a folder of its own: it returns why the result is wrong, "" if it is right,
# or raises.
Trial = Callable[[random.Random, Path], str]


class Wrong(Exception):
    """A result that is wrong, where raising is simpler than returning."""


class Task(NamedTuple):
    corpus: str  # a module of this folder, whose CLASSES are (number of trials, trial) by name
    kind: str
    index: int

    def __str__(self) -> str:
        return f"{self.corpus}/{self.kind}/{self.index}"


@dataclass(frozen=True)
class Result:
    task: Task
    outcome: str
    detail: str


def run(tasks: list[Task], seed: int, jobs: int) -> Iterator[Result]:
    """The results of all tasks, in the order in which they end."""
    waiting = list(reversed(tasks))
    workers: list[_Worker] = []
    while waiting or workers:
        while waiting and len(workers) < jobs:
            workers.append(_Worker(seed))
        for worker in [w for w in workers if w.task is None]:
            if waiting:
                worker.give(waiting.pop())
            else:
                worker.end()
                workers.remove(worker)
        wait([w.connection for w in workers], timeout=1.0)
        for worker in list(workers):
            if result := worker.result():
                yield result
            if worker.is_dead:
                workers.remove(worker)


class _Worker:
    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, seed), daemon=True)
        self._process.start()
        theirs.close()
        self.task: Task | None = None
        self.is_dead = False

    def give(self, task: Task) -> None:
        self.task, self._limit = task, getattr(importlib.import_module(task.corpus), "LIMIT", LIMIT)
        self._until = time.monotonic() + self._limit
        self.connection.send(task)

    def result(self) -> Result | None:
        task = self.task
        if task is None:
            return None
        if self.connection.poll():
            try:
                outcome, detail = self.connection.recv()
            except EOFError:
                self.end()
                code = self._process.exitcode
                return Result(task, "crash", f"the process ended with code {code}")
            self.task = None
            return Result(task, outcome, detail)
        if time.monotonic() > self._until:
            self.end()
            return Result(task, "hang", f"not at an end after {self._limit:g} s")
        return None

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()
        self.is_dead = True


def _work(connection: Connection, seed: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # of libraries that report before they crash
        os.dup2(null, descriptor)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(_judge(task, seed))


def _judge(task: Task, seed: int) -> tuple[str, str]:
    trial: Trial = importlib.import_module(task.corpus).CLASSES[task.kind][1]
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        try:
            wrong = trial(random.Random(f"{seed}/{task}"), Path(folder))
        except GnwsError as error:
            message = " ".join(str(error).split())
            if not message or len(message) > LONGEST:
                return "traceback", f"a message of {len(message)} characters: {message[:100]}"
            return "refused", message
        except Wrong as error:
            wrong = str(error)
        except BaseException as error:
            return "traceback", f"{type(error).__name__}: {error}"[:300]
    return ("silent", wrong) if wrong else ("right", "")
