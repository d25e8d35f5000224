"""The command from end to end, on a small model."""

import shlex

import accuracy
import benchmark
import pytest
from results import read
from variants import OURS, VARIANTS

# All but the compiled one, which takes minutes.
TRAINED = [v.name for v in VARIANTS if not v.folded and v.name != f"{OURS}, compiled"]
MAIN = ["GN", "GN again", "GN + plain WS", OURS]


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """Run the command, and read its results."""
    monkeypatch.setattr(accuracy, "SIZE", (64, 64))
    words = ["--models", small, "--size", "64", "64", "--rounds", "2", "--device", "cpu"]
    words += ["--output", str(tmp_path)]
    return lambda *more: read(benchmark.main([*words, *more]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "mode", "names"),
    [
        ("backbone", "train", TRAINED),
        ("backbone", "infer", [*MAIN, f"{OURS}, folded", f"{OURS}, fused"]),
        ("model", "train", [*MAIN, f"{OURS}, convolutions recomputed"]),
    ],
)
def test_every_variant_is_accurate_and_has_a_row(run, level, mode, names):
    rows = run("--level", level, "--mode", mode, "--variants", *names)["rows"]
    rows = {row["variant"]: row for row in rows}
    assert list(rows) == names
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    assert all(max(row["errors"][:2]) < 1e-4 for row in rows.values())
    assert rows["GN"]["ratio"] == [1, 1, 1] and rows["GN"]["memory"] > 1e6
    assert rows["GN"]["memory"] == pytest.approx(rows["GN again"]["memory"], rel=0.01)


@pytest.mark.slow
def test_kernels(run):
    rows = run("--level", "kernel", "--mode", "train", "--memory-format", "channels_last")["rows"]
    assert rows[0]["what"] == "WS of 32 weights" and rows[0]["base"] == "GN + plain WS"
    shapes = {row["what"]: row["count"] for row in rows if "GN+ReLU" in row["what"]}
    assert shapes["GN+ReLU 1 x 128 x 8 x 8"] == 5  # res3 of an R-18
    assert all(max(e for e in row["errors"] if e is not None) < 1e-5 for row in rows)


def test_presets_are_command_lines():
    for preset in benchmark.PRESETS.values():
        for line in preset:
            args = benchmark.make_parser().parse_args(shlex.split(line))
            assert list(benchmark.cases(args))
