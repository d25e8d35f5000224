"""Each command from beginning to end, on a few images; then the report."""

import math
import sys
from dataclasses import replace

import channels
import classifier
import detector
import doc_tables
import finetune
import processes
import pytest
import run
import smoothness
import summary
from experiment import Preset
from test_micro_batch_summary import EMPTY

pytestmark = pytest.mark.slow


def run_command(monkeypatch, folder, module, score="AP", **of_preset) -> None:
    """Its command with a seed and what else is changed of the experiments that are named."""
    presets = {
        name: replace(preset, seeds=1, **changes)
        for name, preset in module.EXPERIMENTS.items()
        if (changes := of_preset.get(name))
    }
    monkeypatch.setattr(sys, "argv", [module.__name__, "--output", str(folder), "--jobs", "1"])
    monkeypatch.setattr(run.multiprocessing, "get_context", lambda _: processes.context())
    run.command(module.__doc__, module.train, presets, score)


def test_commands_and_report(tmp_path, monkeypatch):
    results, data = tmp_path / "results", tmp_path / "data"
    few = {"images": 40, "norms": ("BN", "GN+WS"), "batches": (1, 8)}
    grid = {**few, "batches": (2,), "lr_grid": (0.01, 0.02)}
    run_command(monkeypatch, results, classifier, "accuracy", classifier_lr=grid, classifier=few)
    run_command(
        monkeypatch, results, smoothness, smoothness={"images": 40, "norms": ("BN", "BCN+WS")}
    )
    run_command(monkeypatch, results, channels, channels={"images": 40, "norms": ("GN", "BCN+WS")})
    few = {"images": 40, "norms": ("BN", "BCN+WS"), "batches": (8,)}
    run_command(
        monkeypatch, results, detector, detector_lr={**few, "lr_grid": (0.02,)}, detector=few
    )
    monkeypatch.setattr(finetune, "WEIGHTS", tmp_path)
    few = {"images": 8, "batches": (1,)}
    run_command(
        monkeypatch,
        results,
        finetune,
        pretrain={"images": 64},
        finetune_lr={**few, "lr_grid": (0.02,)},
        finetune=few,
    )
    summary.collect(results, data)
    summary.draw(data)

    classified = doc_tables.read(data, "classifier")
    assert len(classified) == 4
    assert all(0 <= float(row["accuracy"]) <= 100 for row in classified if not row["diverged"])
    detected = doc_tables.read(data, "detector")
    assert [row["norm"] for row in detected] == ["BN", "BCN+WS"]
    assert all(0 <= float(row["AP"]) <= float(row["AP50"]) <= 100 for row in detected)
    assert [bool(row["AP_batch_statistics"]) for row in detected] == [True, False]
    assert [row["norm"] for row in doc_tables.read(data, "finetune")] == ["BN", "FrozenBN", "GN+WS"]
    smooth = doc_tables.read(data, "smoothness")
    assert len(smooth) == 2 * smoothness.MOMENTS
    assert all(math.isfinite(float(row["relative_beta"])) for row in smooth)
    assert all(0 < float(row["share_along_mean"]) < 1 for row in smooth)
    # The same initial weights, whatever the measure: one seed.
    assert len({row["weight_norm"] for row in smooth if row["images_seen"] == "0"}) == 1
    assert len(doc_tables.read(data, "channels")) == 2
    assert (data / "scores.png").stat().st_size > 10_000
    text = summary.document(EMPTY, data)
    assert text.count("Not measured.") == 2  # FashionMNIST and equal steps


def test_the_same_job_gives_the_same_result():
    [job, *_] = Preset(images=40, reference_lr=0.02, seeds=1).jobs("classifier")
    assert classifier.train(job) == classifier.train(job)
