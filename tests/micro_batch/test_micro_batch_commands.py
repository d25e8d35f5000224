"""Each experiment from beginning to end on a few images; then its CSV file."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import classifier
import detector
import experiment
import finetune
import pytest
import summary

pytestmark = pytest.mark.slow

FEW = {"images": 40, "seeds": (0,), "norms": ("BN", "BCN+WS"), "batches": (8,)}
GRID = {**FEW, "lrs": (0.01, 0.02)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(module, score: str = "", **presets: dict) -> summary.Rows:
        """The command of a module with these experiments changed; the table of the last one."""
        changed = {name: replace(module.EXPERIMENTS[name], **p) for name, p in presets.items()}
        experiment.command(module.__doc__, module.train, changed, score)
        summary.collect(tmp_path, tmp_path)
        return summary.read(tmp_path, [*presets][-1])

    monkeypatch.setattr(sys, "argv", ["command", "--output", str(tmp_path), "--jobs", "1"])
    pool = nullcontext(SimpleNamespace(map=map))  # the jobs in this process
    monkeypatch.setattr(experiment, "ProcessPoolExecutor", lambda *_: pool)
    monkeypatch.setattr(finetune, "WEIGHTS", tmp_path)
    return run


def test_classifier_and_its_learning_rates(run):
    rows = run(classifier, "accuracy", classifier_lr=GRID, classifier=FEW)
    assert [row["norm"] for row in rows] == ["BN", "BCN+WS"]
    assert all(float(row["reference_lr"]) in GRID["lrs"] for row in rows)
    assert all(0 < float(row["accuracy"]) <= 100 for row in rows)


def test_detector_and_fine_tuning(run):
    rows = run(detector, "AP", detector={**FEW, "lrs": (0.02,)})
    assert all(0 <= float(row["AP"]) <= float(row["AP50"]) <= 100 for row in rows)
    assert [bool(row["AP_batch_statistics"]) for row in rows] == [True, False]
    few = {"images": 8, "seeds": (0,), "lrs": (0.02,), "batches": (1,)}
    rows = run(finetune, "AP", pretrain={"images": 64}, finetune=few)
    assert [row["norm"] for row in rows] == ["BN", "FrozenBN", "GN+WS"]
