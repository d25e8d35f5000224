"""Each command from beginning to end, on a few images; then the report."""

import math
import sys

import channels
import classifier
import detector
import doc_tables
import processes
import pytest
import run
import smoothness
import summary
from experiment import Preset
from test_micro_batch_summary import EMPTY

pytestmark = pytest.mark.slow


def run_command(monkeypatch, folder, module, **of_preset) -> None:
    """Its command with a preset of a few images."""
    name = module.__name__
    preset = Preset(images=40, reference_lr=0.02, seeds=1, **of_preset)
    monkeypatch.setattr(sys, "argv", [name, "--output", str(folder), "--jobs", "1"])
    monkeypatch.setattr(run.multiprocessing, "get_context", lambda _: processes.context())
    run.command(module.__doc__, module.train, {name: {"small": preset}})


def test_commands_and_report(tmp_path, monkeypatch):
    results, data = tmp_path / "results", tmp_path / "data"
    run_command(monkeypatch, results, classifier, norms=("BN", "GN+WS"), batches=(1, 8))
    run_command(monkeypatch, results, smoothness, norms=("BN", "BCN+WS"), batches=(2,))
    run_command(monkeypatch, results, channels, norms=("GN", "BCN+WS"), batches=(2,))
    run_command(monkeypatch, results, detector, norms=("BN", "BCN+WS"), batches=(8,))
    summary.collect(results, data)
    summary.draw(data)

    classified = doc_tables.read(data, "classifier")
    assert len(classified) == 4
    assert all(0 <= float(row["accuracy"]) <= 100 for row in classified if not row["diverged"])
    detected = doc_tables.read(data, "detector")
    assert [row["norm"] for row in detected] == ["BN", "BCN+WS"]
    assert all(0 <= float(row["AP"]) <= float(row["AP50"]) <= 100 for row in detected)
    smooth = doc_tables.read(data, "smoothness")
    assert len(smooth) == 2 * smoothness.MOMENTS
    assert all(math.isfinite(float(row["relative_beta"])) for row in smooth)
    assert all(0 < float(row["share_along_mean"]) < 1 for row in smooth)
    # The same initial weights, whatever the measure: one seed.
    assert len({row["weight_norm"] for row in smooth if row["images_seen"] == "0"}) == 1
    assert len(doc_tables.read(data, "channels")) == 2
    names = ("classifier", "classifier_loss", "detector", "detector_loss", "smoothness", "channels")
    assert all((data / f"{name}.png").stat().st_size > 10_000 for name in names)
    assert "not measured yet" not in summary.document(EMPTY, data)


def test_the_same_job_gives_the_same_result():
    [job, *_] = Preset(images=40, reference_lr=0.02, seeds=1).jobs("classifier")
    assert classifier.train(job) == classifier.train(job)
