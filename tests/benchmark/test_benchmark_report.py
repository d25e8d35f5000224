"""The documents' tables are what the results say."""

import copy
import re

import report
from results import read, write

ROW = {
    **{"level": "backbone", "model": "mask_rcnn_R_50_FPN", "size": [512, 512], "mode": "train"},
    **{"precision": "fp32", "device": "cpu", "what": "backbone", "variant": "GN", "base": "GN"},
    **{"seconds": [1.0, 1.2, 1.1], "ratio": [1.0, 1.0, 1.0], "memory": 2000000},
}
CONTROL = {**ROW, "variant": "GN again", "ratio": [1.001, 0.99, 1.013]}
OURS = {**ROW, "variant": "GN+WS", "ratio": [1.08, 1.07, 1.09], "memory": 3000000}
RUN = {"machine": "A CPU", "rows": [ROW, CONTROL, OURS]}


def lines(table: str) -> list[list[str]]:
    """The cells of a table without its head."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def changed(**values) -> dict:
    run = copy.deepcopy(RUN)
    for row in run["rows"]:
        row.update(values)
    return run


def test_every_number_of_the_page_is_measured():
    """Ratios in sentences, too."""
    known = set()
    for row in report.measured({file.name: read(file) for file in report.RUNS.glob("*.json")}):
        known.update(f"{value:.3f}" for value in (*row["ratio"], row["memory"]))
    text = (report.ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\b\d\.\d{3}\b", text))
    assert len(numbers) > 50 and numbers <= known


def test_a_line_of_several_models_and_the_run_with_the_most_rounds():
    longer = changed(seconds=[1.0] * 4)
    longer["rows"][2]["ratio"] = [1.05, 1.04, 1.06]
    large = [
        *changed(model="mask_rcnn_R_101_FPN")["rows"],
        *changed(model="mask_rcnn_X_50_32x4d_FPN", memory=10)["rows"],
    ]
    large[-1]["ratio"] = [1.02, 1.01, 1.03]
    gpu = {**changed(precision="bf16"), "machine": "A GPU"}
    runs = {"a": RUN, "b": longer, "c": RUN, "d": {**RUN, "rows": large}, "e": gpu}
    assert lines(report.headline(runs)) == [
        ["backbone, R-50, training, bf16", "A GPU", "512 x 512", "1"]
        + ["1.080", "1.070 to 1.090", "0.990 to 1.013", "1.500"],
        ["backbone, R-50, training", "A CPU", "512 x 512", "1"]
        + ["1.050", "1.040 to 1.060", "0.990 to 1.013", "1.500"],
        ["backbone, R-101, X-50, X-101, training", "A CPU", "512 x 512", "2"]
        + ["1.020 to 1.080", "1.010 to 1.090", "0.990 to 1.013", "1.000 to 1.500"],
    ]


def test_results_are_read_as_they_were_written(tmp_path):
    write(tmp_path / "run.json", RUN)
    assert read(tmp_path / "run.json") == RUN
