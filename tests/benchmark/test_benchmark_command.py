"""The command from end to end, on a small model: results, tables and plots."""

import shlex

import benchmark
import plots
import pytest
import report
from results import read
from variants import variants

MODEL = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
COMPILED = ["GN+WS, compiled"]  # takes minutes


def run(folder, *words: str) -> dict:
    small = ["--models", MODEL, "--size", "64", "64", "--rounds", "2", "--device", "cpu"]
    small += ["--without", *COMPILED]
    return read(benchmark.main([*words, *small, "--output", str(folder)]))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["backbone", "model"])
def test_every_variant_has_a_row(tmp_path, level):
    results = run(tmp_path, "--level", level, "--mode", "train", "infer")
    for mode in ("train", "infer"):
        rows = {row["variant"]: row for row in results["rows"] if row["mode"] == mode}
        assert list(rows) == [v.name for v in variants(mode) if v.name not in COMPILED]
        assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
        assert rows["GN"]["ratio"] == [1, 1, 1] and rows["GN"]["errors"][1] < 1e-4
        assert rows["GN"]["memory"] == rows["GN again"]["memory"] > 1e6
    assert plots.draw(results, tmp_path / "run")
    assert len(list(tmp_path.glob("run-*.png"))) == len(list(tmp_path.glob("run-*.svg"))) == 2
    assert f"{level.capitalize()}, inference" in report.section("run.json", results)


@pytest.mark.slow
def test_kernels(tmp_path):
    rows = run(tmp_path, "--level", "kernel", "--mode", "train", "--memory-format", "channels_last")
    whats = dict.fromkeys(row["what"] for row in rows["rows"])
    assert next(iter(whats)) == "WS of 32 weights"
    shapes = {row["what"]: row["count"] for row in rows["rows"] if "GN+ReLU" in row["what"]}
    assert shapes["GN+ReLU 1 x 128 x 8 x 8"] == 5  # res3 of an R-18
    assert all(max(e for e in row["errors"] if e is not None) < 1e-5 for row in rows["rows"])


def test_presets_are_command_lines():
    for preset in benchmark.PRESETS.values():
        for line in preset:
            args = benchmark.make_parser().parse_args(shlex.split(line))
            assert list(benchmark.cases(args)) or args.precision == ["tf32"]
