"""docs/benchmarks.md is what the committed results make, and says what they say."""

import copy
import json
import re

import pytest
import report
from aims import AIMS
from results import dump, read

ROW = {
    **{"level": "backbone", "model": "mask_rcnn_R_50_FPN", "size": [512, 512], "batch": 1},
    **{"mode": "train", "precision": "fp32", "memory_format": "nchw", "device": "cpu"},
    **{"what": "backbone", "count": 1, "variant": "GN", "base": "GN"},
    **{"seconds": [1.0, 1.2, 1.1], "ratio": [1.0, 1.0, 1.0], "memory": 2000000, "launches": None},
    "errors": [1e-6, 2e-6, 3e-4],
}
CONTROL = {**ROW, "variant": "GN again", "ratio": [1.001, 0.99, 1.013]}
OURS = {**ROW, "variant": "GN+WS", "ratio": [1.08, 1.07, 1.09], "memory": 3000000}
RUN = {
    **{"format": 1, "date": "2026-01-02", "machine": "A CPU", "threads": 2, "load": 0.1},
    **{"versions": {"torch": "2.11.0", "cuda": None}, "command": "--preset cpu"},
    "commit": "1a2b3c4",
    "rows": [ROW, CONTROL, OURS],
}
MARKS = "before\n<!-- results: x -->\nold\n<!-- end of results -->\nafter\n"


def line(text: str, words: str) -> list[str]:
    """The cells of the one line of a table that has ``words``."""
    (found,) = [row for row in text.splitlines() if words in row and row.startswith("|")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_document_is_up_to_date():
    text = (report.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    made = report.fill(text, report.committed(report.DOCS / "benchmarks"))
    assert text == made, "run python projects/Benchmark/report.py"
    for file in re.findall(r"\((benchmarks/[^)]+)\)", text):
        assert (report.DOCS / file).is_file()


def test_only_what_is_between_the_marks_changes():
    text = report.fill(MARKS, {"run.json": RUN})
    assert text.startswith("before\n<!-- results: x -->\n## Aims")
    assert text.endswith("<!-- end of results -->\nafter\n") and "old" not in text
    assert report.fill(text, {"run.json": RUN}) == text


def test_the_figures():
    text = report.section("run.json", RUN)
    assert "## run: A CPU, 2 threads" in text
    assert "benchmark.py --preset cpu` at 1a2b3c4, 2026-01-02 (torch 2.11.0; load" in text
    times, memory = [row for row in text.splitlines() if "512 x 512" in row]
    assert line(times, "512")[1:] == ["1100 ms", "1.001 (0.990 to 1.013)", "1.080 (1.070 to 1.090)"]
    assert line(memory, "512")[1:] == ["2 MB", "1.000", "1.500"]
    assert "| GN+WS     | fp32        | 1e-06   | 2e-06    | 3e-04      |" in text


@pytest.mark.parametrize(
    ("ratio", "control", "verdict"),
    [
        ([1.08, 1.07, 1.09], [0.99, 1.013], "**missed**"),
        ([1.04, 1.03, 1.049], [0.99, 1.013], "met"),
        ([1.04, 1.03, 1.06], [0.99, 1.013], "undecided"),  # the aim is within the interval
        ([1.06, 1.04, 1.07], [0.99, 1.013], "undecided"),
        ([1.04, 1.03, 1.049], [0.95, 0.98], "undecided"),  # the same model is not as fast as itself
        ([1.08, 1.07, 1.09], [1.01, 1.02], "undecided"),
    ],
)
def test_an_aim_in_training_is_met_or_missed_by_the_whole_interval(ratio, control, verdict):
    run = copy.deepcopy(RUN)
    run["rows"][1]["ratio"][1:] = control
    run["rows"][2]["ratio"] = ratio
    cells = line(report.aims({"run.json": run}), "CPU, R-50, 512 x 512")
    shown = "{:.3f} ({:.3f} to {:.3f})".format(*ratio)
    assert cells[2:] == ["run", shown, "{:.3f} to {:.3f}".format(*control), verdict]


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ([1.012, 1.0, 1.03], "met"),
        ([1.02, 1.0, 1.03], "undecided"),
        ([1.02, 1.014, 1.03], "**missed**"),
    ],
)
def test_inference_may_differ_from_1_as_the_control_does(ratio, verdict):
    rows = copy.deepcopy(RUN["rows"])
    for row in rows:
        row["mode"] = "infer"
    rows[2]["ratio"] = ratio
    text = report.aims({"run.json": {**RUN, "rows": rows}})
    assert line(text, "inference, CPU")[-1] == verdict


def test_memory_is_compared_with_that_of_the_base_of_the_aim():
    run = copy.deepcopy(RUN)
    frozen = {**ROW, "variant": "FrozenBN", "memory": 1600000}
    rebuilt = {**ROW, "variant": "GN+WS, convolutions rebuilt", "memory": 1680000}
    run["rows"] += [frozen, rebuilt]
    cells = line(report.aims({"run.json": run}), "CPU, convolutions rebuilt too: the memory of")
    assert cells[3:] == ["1.050", "", "**missed**"]


def test_what_was_not_measured_is_said():
    text = report.fill(MARKS, {})
    aims = text[: text.index("## What has been measured")]
    assert aims.count(report.NOT_MEASURED) == len(AIMS)
    covered = line(report.coverage({"run.json": RUN}), "| mask_rcnn_R_50_FPN ")
    assert covered[1:] == ["backbone train", *[report.NOT_MEASURED] * 3]


def test_results_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(dump(RUN))
    assert read(file) == RUN
    file.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match=r"run\.json.*benchmark\.py"):
        read(file)
