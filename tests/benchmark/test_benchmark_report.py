"""docs/benchmarks.md is what the committed results make, and says what they say."""

import copy
import json
import re

import pytest
import report
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


def lines(table: str) -> list[list[str]]:
    """The cells of a table without its head."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def changed(**values) -> dict:
    run = copy.deepcopy(RUN)
    for row in run["rows"]:
        row.update(values)
    return run


def test_the_documents_are_up_to_date():
    for document, text in report.documents().items():
        assert document.read_text(encoding="utf-8") == text, "run projects/Benchmark/report.py"


def test_every_number_of_the_page_is_measured():
    """Ratios in sentences, too: of times, and of memory to that of GN and of FrozenBN."""
    known = set()
    for m in report.measured({f.name: read(f) for f in report.RESULTS.glob("*.json")}):
        known.update(f"{value:.3f}" for value in (*m.row["ratio"], m.memory))
        if "FrozenBN" in m.others:
            known.add(f"{m.row['memory'] / m.others['FrozenBN']['memory']:.3f}")
    text = (report.ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\b\d\.\d{3}\b", text))
    assert len(numbers) > 50 and numbers <= known
    for file in re.findall(r"\((benchmarks/[^)]+)\)", text):
        assert (report.ROOT / "docs" / file).is_file()


def test_a_line_of_the_table():
    [line] = lines(report.headline({"run": RUN}))
    assert line[:3] == ["backbone, R-50, training", "512 x 512", "1"]
    assert line[3:] == ["1.080", "1.070 to 1.090", "0.990 to 1.013", "1.500"]


def test_several_models_are_a_range():
    rows = [
        *changed(model="mask_rcnn_R_101_FPN")["rows"],
        *changed(model="mask_rcnn_X_50_32x4d_FPN", memory=10)["rows"],
    ]
    rows[-1]["ratio"] = [1.02, 1.01, 1.03]
    [line] = lines(report.headline({"run": {**RUN, "rows": rows}}))
    assert line[0] == "backbone, R-101, X-50, X-101, training" and line[2] == "2"
    assert line[3:5] == ["1.020 to 1.080", "1.010 to 1.090"] and line[6] == "1.000 to 1.500"


def test_the_run_with_the_most_rounds_counts():
    longer = changed(seconds=[1.0] * 4)
    longer["rows"][2]["ratio"] = [1.05, 1.04, 1.06]
    for runs in ({"a": RUN, "b": longer}, {"a": longer, "b": RUN}):
        [line] = lines(report.headline(runs))
        assert line[2:5] == ["1", "1.050", "1.040 to 1.060"]


def test_machines_and_unusual_cases_are_apart():
    text = report.headline({"a": RUN, "b": {**changed(precision="bf16"), "machine": "A GPU"}})
    first, second = text.split("\n\n")
    assert "| A CPU " in first and "| A GPU " in second
    assert lines(second)[0][0] == "backbone, R-50, training, bf16"


def test_the_table_of_variants():
    fused = {**OURS, "variant": "GN+WS, fused", "ratio": [1.2, 1.1, 1.3]}
    larger = {**RUN, "rows": [*changed()["rows"], fused]}
    larger["rows"][2]["ratio"] = [1.01, 1.0, 1.02]
    ours, others = lines(report.by_variant({"a": RUN, "b": larger}))
    # From the run that compared the most.
    assert ours[:3] == ["GN+WS", "1.010 (1.000 to 1.020)", "1.001 (0.990 to 1.013)"]
    assert others[1:] == ["1.200 (1.100 to 1.300)", ours[2], "1.500", "-", "-", "-"]


def test_a_run_is_named_with_its_command():
    assert report.provenance({"run.json": RUN}) == (
        "- [run.json](benchmarks/run.json): `benchmark.py --preset cpu` at 1a2b3c4, 2026-01-02; "
        "A CPU, 2 threads, load 0.1 at the start, torch 2.11.0"
    )


def test_results_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(dump(RUN))
    assert read(file) == RUN
    file.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match=r"run\.json.*benchmark\.py"):
        read(file)
