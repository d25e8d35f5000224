"""``gnws train``, ``eval``, ``predict`` and ``export`` as functions, for notebooks and scripts.

A flag is an argument of its name: ``--num-gpus 2`` is ``num_gpus=2``, a switch is ``True``, several
values are a list; ``overrides={"KEY": value}`` are those of the config. An error that a command
says in one line is raised, a GnwsError or OSError, and Ctrl-C as KeyboardInterrupt at its end.
"""

import argparse
import contextlib
import functools
import importlib
import io
import logging
import os
import pickle
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger

from gnws.arguments import COMMANDS, parse
from gnws_d2.engine import launch
from gnws_d2.errors import ConfigError, DatasetError, GnwsError
from gnws_d2.projects.detection import train_net
from gnws_d2.projects.detection.train_net import Outcome

File = str | os.PathLike


def train(data: File | None = None, **flags: Any) -> Outcome | None:
    """``gnws train``, as ``gnws_d2.train("FOLDER", epochs=20, output="output/mine")``.

    For several processes (``num_gpus``), which import the calling script, call it there below
    ``if __name__ == "__main__":``. Returns what the main process has found; None on other machines.
    """
    return _launched("train", data=data, **flags)


def evaluate(weights: File, **flags: Any) -> Outcome | None:
    """``gnws eval``, on the images of ``data`` or ``test``, or those of the run. See train."""
    return _launched("eval", weights=weights, **flags)


def predict(
    weights: File, images: File | Sequence[File], *, threshold: float | None = None, **flags: Any
) -> dict[str, list[dict[str, Any]]]:
    """``gnws predict``, of files, folders and globs.

    Returns:
        The content of detections.json in ``output``, "images", "categories", and "annotations" with
        a score and a bbox [x, y, width, height] in pixels. What cannot be read is only logged.

    Raises:
        DatasetError: no image can be read.
    """
    flags |= {"weights": weights, "input": images, "confidence_threshold": threshold}
    with _command("predict", **flags) as (program, args):
        results, code = program.run(args)
    if code > 1:
        raise KeyboardInterrupt
    if code and not results.detections.images:
        raise DatasetError("No image can be read: the log says why. Name others.")
    return results.detections.content()


def export(weights: File, images: File | Sequence[File], **flags: Any) -> dict[str, Path]:
    """``gnws export``, compared on ``images``: the file in ``output`` of each ``format``.

    Raises:
        GnwsError: a format does not support the model; the others are written.
    """
    with _command("export", weights=weights, input=images, **flags) as (program, args):
        written, refused = program.run(args)
    if refused:
        raise GnwsError(" ".join(map(str, refused)))
    return written


def _launched(name: str, /, **flags: Any) -> Outcome | None:
    with tempfile.TemporaryDirectory() as folder, _command(name, **flags) as (_, args):
        file = Path(folder, "outcome")
        processes = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
        device = functools.partial(train_net.device_of, args)
        launch(_run, *processes, args=(args, file), device=device)
        return pickle.loads(file.read_bytes()) if file.exists() else None  # from _run alone


def _run(args: argparse.Namespace, file: Path) -> None:
    """Write what the main process returns, which may be another one than the caller's."""
    if outcome := train_net.run(args):
        file.write_bytes(pickle.dumps(outcome))


@contextlib.contextmanager
def _command(
    name: str, /, overrides: Mapping[str, object] | None = None, **flags: Any
) -> Iterator[tuple[Any, argparse.Namespace]]:
    """The program of a command and its arguments; what ends the program is raised as an error."""
    words, said, former = [name], io.StringIO(), signal.getsignal(signal.SIGINT)
    for flag, value in flags.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        word = f"--{flag.replace('_', '-')}"
        words += [
            word if v is True else f"{word}={v}" for v in values if not (v is None or v is False)
        ]
    words += ["--opts"] * (name in ("predict", "export") and bool(overrides))
    words += [str(word) for pair in (overrides or {}).items() for word in pair]
    try:
        with contextlib.redirect_stderr(said):
            args = parse(words=words)
    except SystemExit:
        raise ConfigError(said.getvalue().strip()) from None
    setup_logger.cache_clear()  # or a second call would add its handlers to those of the first
    for logger in ("detectron2", "fvcore", "gnws_d2"):
        logging.getLogger(logger).handlers.clear()
    try:
        yield importlib.import_module(COMMANDS[name][0]), args
    except SystemExit as end:
        if isinstance(end.code, int):  # 128 and the signal
            raise KeyboardInterrupt from None
        known = isinstance(cause := end.__context__, (GnwsError, OSError))  # or of another process
        raise cause if known else GnwsError(str(end.code).removeprefix("error: ")) from None
    finally:
        if signal.getsignal(signal.SIGINT) is not former:  # the program's
            signal.signal(signal.SIGINT, former)
