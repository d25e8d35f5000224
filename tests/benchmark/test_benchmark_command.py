"""The command from end to end, on a small model: results, tables and plots."""

import re
import shlex

import benchmark
import pytest
from results import read
from variants import variants

MODEL = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
COMPILED = ["GN+WS, compiled"]  # takes minutes


def run(folder, *words: str) -> dict:
    small = ["--models", MODEL, "--size", "64", "64", "--rounds", "2", "--device", "cpu"]
    small += ["--without", *COMPILED]
    return read(benchmark.main([*words, *small, "--output", str(folder)]))


def test_what_all_are_compared_with_cannot_be_left_out(tmp_path, capsys):
    for name in ("GN", "GN again"):
        with pytest.raises(SystemExit):
            run(tmp_path, "--without", name)
        assert f"invalid choice: '{name}'" in capsys.readouterr().err


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
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.svg"))) == 2
    [tables] = tmp_path.glob("*.md")
    text = tables.read_text(encoding="utf-8")
    assert f"{level.capitalize()}, inference" in text
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len(linked) == 5 and all((tmp_path / file).is_file() for file in linked)


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
