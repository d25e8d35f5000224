"""Commands in processes of their own, forked from one that has the imports behind it.

An import of torch and Detectron2 takes seconds, most of what such a test would take. With
START_METHOD, torch.multiprocessing forks from the same process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
START_METHOD = "forkserver"
_CONTEXT = multiprocessing.get_context(START_METHOD)
_CONTEXT.set_forkserver_preload(
    [
        *("gnws_d2.engine", "gnws_d2.predictor", "detectron2.data.datasets"),
        *(f"gnws_d2.projects.{name}" for name in ("digits", "export", "own_data", "report")),
    ]
)


_ENVIRONMENT = dict(os.environ)  # before any test has changed it


def context() -> BaseContext:
    """The processes of START_METHOD, in the environment that pytest was started in."""
    with mock.patch.dict(os.environ, _ENVIRONMENT, clear=True):
        forkserver.ensure_running()
    return _CONTEXT


def start(
    *words: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: str = os.devnull,
    stderr: str = os.devnull,
) -> multiprocessing.Process:
    """Start ``python WORDS``, a file or ``-m`` and a module, as the leader of a process group."""
    arguments = ([str(word) for word in words], str(cwd or Path.cwd()), dict(env or os.environ))
    process = context().Process(target=_run, args=(*arguments, stdout, stderr))
    process.start()
    return process


def run(
    *words: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess:
    """``subprocess.run([sys.executable, *words], capture_output=True, text=True)``.

    Raises:
        subprocess.TimeoutExpired: it did not end within ``timeout`` seconds; it has been killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = (os.path.join(folder, name) for name in ("out", "err"))
        process = start(*words, cwd=cwd, env=env, stdout=out, stderr=err)
        process.join(timeout)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            raise subprocess.TimeoutExpired(words, timeout)
        texts = [Path(file).read_text(encoding="utf-8") for file in (out, err)]
        return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _run(words: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    os.setsid()
    for file, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    # As the import would have done in this environment.
    from gnws_d2.projects import digits

    digits.register()
    # Without the folders that pytest adds.
    added = tuple(f"{ROOT / name}" for name in ("tests", "projects"))
    path = [entry for entry in sys.path if not entry.startswith(added)]
    sys.argv = words[1:] if words[0] == "-m" else words
    if words[0] == "-m":
        sys.path[:] = [cwd, *path]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:] = [str(Path(words[0]).parent), *path]
        runpy.run_path(words[0], run_name="__main__")
