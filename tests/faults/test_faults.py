"""The attack tells apart what survives, hangs, crashes or is wrong; the package survives a few."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[2] / "projects" / "Faults"
CORPUS = """
import os, signal, time
from gnws_d2.errors import GnwsError

LIMIT = 1.0

def right(rng, folder):
    return ""

def refused(rng, folder):
    raise GnwsError("one line")

def silent(rng, folder):
    return str(rng.random())

def hang(rng, folder):
    time.sleep(60)

def crash(rng, folder):
    os.kill(os.getpid(), signal.SIGKILL)

def traceback(rng, folder):
    raise KeyError("x")

def long(rng, folder):
    raise GnwsError("x" * 10_000)

CLASSES = {f.__name__: (1, f) for f in (right, refused, silent, hang, crash, traceback, long)}
"""


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.syspath_prepend(FAULTS)
    yield importlib.import_module("trials")
    del sys.modules["trials"]  # a short name


def test_every_end_of_a_trial_is_told_apart(trials, tmp_path, monkeypatch):
    (tmp_path / "corpus_of_all_ends.py").write_text(CORPUS)
    monkeypatch.syspath_prepend(tmp_path)
    kinds = importlib.import_module("corpus_of_all_ends").CLASSES
    found = {kind: trials.run(f"corpus_of_all_ends/{kind}/0", seed=0)[0] for kind in kinds}
    assert found == {kind: kind for kind in trials.OUTCOMES} | {"long": "traceback"}
    drawn = [trials.run(f"corpus_of_all_ends/silent/{i}", seed=0) for i in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["configs", "checkpoints", "datasets", "downloads"])
def test_a_few_trials_of_every_class_survive(corpus):
    # In a process of its own: the trials fork, and autograd must not have run before.
    words = f"{FAULTS / 'faults.py'} {corpus} --dry-run --scale 0.03 --seed 18".split()
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
