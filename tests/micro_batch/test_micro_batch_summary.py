"""Tables and the plot from a handful of results; the document is what its CSV files give."""

import csv
import json
import math

import doc_tables
import pytest
import summary

MARKS = (
    *("detector", "finetune", "classifier", "fashion", "equal steps", "statistics of BN"),
    *("pretrain", "differences", "learning rates", "smoothness", "channels", "cost"),
)
EMPTY = "".join(f"<!-- {name}: made by summary.py -->\n<!-- end of {name} -->\n" for name in MARKS)


def write(folder, experiment: str, norm: str, batch: int, seed: int, row: dict | None) -> None:
    job = {"experiment": experiment, "norm": norm, "batch": batch, "seed": seed, "images": 40}
    result = {
        "job": {**job, "reference_lr": 0.1},
        "diverged": "" if row else "the loss is nan at step 3 of 40",
        "cpu_seconds": 30.0,
        "seconds": 40.0,
        "rows": [row] if row else [],
    }
    name = f"{experiment}-{norm.lower().replace('+', '_')}-batch{batch}-seed{seed}.json"
    (folder / name).write_text(json.dumps(result))


@pytest.fixture
def data(tmp_path):
    """CSV files of a few results, one of which diverged, one file torn."""
    results = tmp_path / "results"
    results.mkdir()
    for seed, (one, two) in enumerate([(10.0, 30.0), (12.0, 33.0)]):
        for norm, shift in (("GN+WS", 5), ("BN", 0)):
            row = {"AP": one + shift, "AP50": two}
            write(results, "detector", norm, 1, seed, row)
            diverged = norm == "BN" and seed == 1
            write(results, "detector", norm, 2, seed, None if diverged else row)
        write(results, "detector", "GN", 1, seed, {"AP": 1.0, "AP50": 2.0})
        write(results, "detector", "GN", 2, seed, None)
    (results / "detector-bcn-batch1-seed0.json").write_text('{"job": {"exper')
    summary.collect(results, tmp_path / "data")
    return tmp_path / "data"


def cells(text: str, row: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {row} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_table_has_mean_deviation_and_what_diverged(data):
    table = doc_tables.scores(doc_tables.read(data, "detector"), "AP")
    assert [cells(table, "norm"), cells(table, "GN+WS")] == [
        ["1 per step", "2 per step"],
        ["16.0 ± 1.4", "16.0 ± 1.4"],
    ]
    assert cells(table, "BN") == ["11.0 ± 1.4", "10.0 (1 of 2 diverged)"]
    assert cells(table, "GN") == ["1.0 ± 0.0", "diverged"]
    assert table.index("| BN") < table.index("| GN ") < table.index("| GN+WS")


def test_a_job_is_a_row_also_where_it_diverged(data):
    rows = doc_tables.read(data, "detector")
    assert len(rows) == 12
    diverged = [row for row in rows if row["diverged"]]
    assert len(diverged) == 3 and all(row["AP"] == "" for row in diverged)


def test_what_was_not_measured_is_said(data):
    text = summary.document(EMPTY, data)
    assert cells(text, "classifier")[0] == doc_tables.NOT_MEASURED
    assert cells(text, "detector") == ["12", "2", "40", "3", "6.0"]
    assert cells(text, "all")[-1] == "6.0"


def write_rows(folder, name: str, *rows: dict) -> None:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)


def test_the_rate_that_was_taken_is_in_bold(tmp_path):
    job = {"norm": "GN", "batch": 2, "seed": 100}
    tried = [{**job, "reference_lr": lr, "AP": ap} for lr, ap in ((0.12, ""), (0.06, 7), (0.03, 8))]
    write_rows(tmp_path, "detector_lr", *tried)
    write_rows(tmp_path, "detector", {**job, "reference_lr": 0.06, "AP": 1})
    table = doc_tables.rates_table(tmp_path)
    assert "detector, AP at 0.03, 0.06, 0.12" in table
    assert cells(table, "GN")[0] == "8.0, **7.0**, diverged"


def test_the_gap_of_bns_statistics_is_that_of_each_seed(tmp_path):
    rows = [
        {"norm": "BN", "batch": 1, "seed": seed, "AP": ap, "AP_batch_statistics": own}
        for seed, (ap, own) in enumerate([(10, 9), (20, 16)])
    ]
    gn = {"norm": "GN", "batch": 1, "seed": 0, "AP": 50, "AP_batch_statistics": ""}
    write_rows(tmp_path, "detector", *rows, gn)
    table = doc_tables.batch_statistics_table(tmp_path)
    assert cells(table, "detector, running")[:2] == ["15.0 ± 7.1", doc_tables.NOT_MEASURED]
    assert cells(table, "detector, difference")[0] == "-2.5 ± 2.1"


def test_a_difference_is_that_of_each_seed_and_bold_where_they_agree(tmp_path):
    aps = {"BN": {0: 10, 1: 11, 2: 12}, "GN": {1: 5}, "GN+WS": {2: 15, 1: 13, 0: 11}}
    aps |= {"BCN": {0: 10, 1: ""}, "BCN+WS": {0: 11, 1: 10, 2: 11}}
    rows = [
        {"norm": norm, "batch": 1, "seed": seed, "images": 40, "AP": ap}
        for norm, by_seed in aps.items()
        for seed, ap in by_seed.items()
    ]
    write_rows(tmp_path, "detector", *rows)
    table = doc_tables.differences_table(tmp_path)
    first = {row: cells(table, f"detector: {row}")[0] for row in ("GN+WS - BN", "GN+WS - GN")}
    assert first == {"GN+WS - BN": "**2.0 ± 1.0**", "GN+WS - GN": "8.0"}
    assert cells(table, "detector: BCN+WS - BN")[:2] == ["-0.3 ± 1.2", doc_tables.NOT_MEASURED]
    assert cells(table, "detector: BCN+WS - BCN")[0] == "1.0 (1 of 2 diverged)"


def test_equal_steps_include_those_of_the_experiment_of_equal_images(tmp_path):
    job = {"norm": "GN", "seed": 0}
    write_rows(tmp_path, "detector_steps", {**job, "batch": 1, "images": 20, "AP": 1})
    equal = [{**job, "batch": b, "images": 40, "AP": b} for b in (1, 2, 4)]
    write_rows(tmp_path, "detector", *equal)
    assert cells(doc_tables.steps_table(tmp_path), "GN") == ["1.0", "2.0"]


def test_smoothness_is_the_median_of_a_training(tmp_path):
    columns = dict.fromkeys(column for column, _ in doc_tables.SMOOTHNESS.values())
    header = ["norm", "batch", "seed", "images_seen", *columns]
    with (tmp_path / "smoothness.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header, restval="0.5")
        writer.writeheader()
        for seed, values in enumerate([(1, 2, 9), (3, 4, 100)]):
            for i, value in enumerate(values):
                job = {"norm": "GN", "batch": 2, "seed": seed, "images_seen": i}
                writer.writerow({**job, "raw_beta": value})
    table = doc_tables.smoothness_table(doc_tables.read(tmp_path, "smoothness"))
    raw_beta, *_, share = cells(table, "GN")
    assert raw_beta == f"3.00 ± {math.sqrt(2):.2f}" and share == "50.00 ± 0.00"


def test_a_table_is_put_between_its_marks_and_nothing_else_changes(data):
    once = summary.document(f"before\n{EMPTY}after\n", data)
    assert once.startswith("before\n") and once.endswith("after\n")
    assert summary.document(once, data) == once
    with pytest.raises(ValueError, match="no place for the table 'cost'"):
        summary.document(EMPTY.replace("cost", "costs"), data)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        summary.collect(tmp_path, tmp_path / "data")


def test_the_plot_is_drawn_the_same_every_time(data):
    summary.draw(data)
    assert {f.name for f in data.iterdir() if f.suffix != ".csv"} == {"scores.png", "scores.svg"}
    first = (data / "scores.svg").read_bytes()
    assert b"GN+WS" in first or b"<path" in first
    summary.draw(data)
    assert (data / "scores.svg").read_bytes() == first


def test_the_document_is_up_to_date():
    text = summary.DOCUMENT.read_text(encoding="utf-8")
    stale = "docs/micro-batch.md differs: run python projects/MicroBatch/summary.py"
    assert summary.document(text, summary.DATA) == text, stale
