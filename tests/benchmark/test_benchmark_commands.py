"""The commands from end to end, on a small model."""

import activation_memory
import benchmark
import pytest
from results import read
from variants import OURS, VARIANTS

pytestmark = pytest.mark.slow
TRAINED = [v.name for v in VARIANTS if not v.folded]
MAIN = ["GN", "GN again", "GN + plain WS", OURS]


@pytest.fixture
def run(small, tmp_path):
    """Run benchmark.py, and read its results."""
    words = ["--models", small, "--size", "64", "64", "--rounds", "2", "--device", "cpu"]
    words += ["--output", str(tmp_path)]
    return lambda *more: read(benchmark.main([*words, *more]))["rows"]


@pytest.mark.parametrize(
    ("level", "mode", "names"),
    [
        ("backbone", "train", TRAINED),
        ("backbone", "infer", [*MAIN, f"{OURS}, folded", f"{OURS}, fused"]),
        ("model", "train", [*MAIN, f"{OURS}, convolutions recomputed"]),
        ("model", "infer", MAIN),
    ],
)
def test_every_variant_is_accurate_and_has_a_row(run, level, mode, names):
    rows = {r["variant"]: r for r in run("--level", level, "--mode", mode, "--variants", *names)}
    assert list(rows) == names
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    assert all(row["errors"][0] < 1e-4 for row in rows.values())
    assert rows["GN"]["ratio"] == [1, 1, 1] and rows["GN"]["memory"] > 1e6
    assert rows["GN"]["memory"] == pytest.approx(rows["GN again"]["memory"], rel=0.01)


def test_activation_memory(small, monkeypatch):
    words = ["--model", small, "--size", "128", "128", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["activation_memory.py", *words])
    printed = []
    monkeypatch.setattr(activation_memory, "tabulate", lambda rows, *_, **__: printed.extend(rows))
    activation_memory.main()
    kept = {name: ratio for name, _, ratio, *_ in printed}
    assert kept.pop(f"{OURS}, checkpointed") < kept[f"{OURS}, convolutions recomputed"]
    assert list(kept) == activation_memory.NAMES
    assert kept[f"{OURS}, fused, recomputed"] < kept["GN"] == 1
