"""The attack counts what survives, and what hangs, crashes or is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gnws.marked_text import replace_marked

ROOT = Path(__file__).parents[1]
CORPUS = """
import os, signal, time
from gnws_d2.errors import GnwsError

def right(rng, folder):
    return ""

def refused(rng, folder):
    raise GnwsError("one line")

def silent(rng, folder):
    return "something else"

def hang(rng, folder):
    time.sleep(60)

def crash(rng, folder):
    os.kill(os.getpid(), signal.SIGKILL)

def traceback(rng, folder):
    raise KeyError("x")

def long(rng, folder):
    raise GnwsError("x" * 10_000)

def random(rng, folder):
    return str(rng.random())

ENDS = (right, refused, silent, hang, crash, traceback, long, random)
CLASSES = {f.__name__: (2, f) for f in ENDS}
"""


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "projects" / "Faults"))
    before = set(sys.modules)
    yield importlib.import_module("trials")
    for name in set(sys.modules) - before:  # whose names are short
        if "Faults" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_every_end_of_a_trial_is_told_apart(trials, tmp_path, monkeypatch):
    (tmp_path / "corpus_of_all_ends.py").write_text(CORPUS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trials, "LIMIT", 1.0)
    kinds = importlib.import_module("corpus_of_all_ends").CLASSES
    tasks = [trials.Task("corpus_of_all_ends", kind, i) for kind in kinds for i in range(2)]
    results = list(trials.run(tasks, seed=0, jobs=2))
    assert sorted(map(str, tasks)) == sorted(str(r.task) for r in results)
    names = ("right", "refused", "silent", "hang", "crash", "traceback")
    expected = {name: name for name in names} | {"long": "traceback", "random": "silent"}
    assert {r.task.kind: r.outcome for r in results} == expected
    again = list(trials.run(tasks[-2:], seed=0, jobs=1))
    drawn = {r.task: r.detail for r in results if r.task.kind == "random"}
    assert {r.task: r.detail for r in again} == drawn and len(set(drawn.values())) == 2


@pytest.mark.slow
def test_a_few_trials_of_every_class_survive():
    # In a process of its own: the trials fork, and autograd must not have run before.
    command = "projects/Faults/faults.py --dry-run --scale 0.02 --seed 18 --jobs 1"
    ended = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_document_has_the_counts(trials):
    faults = importlib.import_module("faults")
    counts = json.loads(faults.COUNTS.read_text(encoding="utf-8"))
    assert {corpus: set(kinds) for corpus, kinds in counts.items()} == {
        corpus: set(importlib.import_module(corpus).CLASSES) for corpus in faults.CORPORA
    }
    text = faults.DOCUMENT.read_text(encoding="utf-8")
    assert replace_marked(text, "faults", faults.table(counts)) == text
