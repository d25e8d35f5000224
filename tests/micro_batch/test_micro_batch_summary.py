"""The tables of a handful of results, computed by hand."""

import csv
import json

import summary

JOB = {"batch": 1, "seed": 0, "images": 40, "reference_lr": 0.1, "diverged": ""}


def write(folder, experiment: str, *rows: dict) -> None:
    rows = [{**JOB, **row} for row in rows]
    with (folder / f"{experiment}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)


def cells(text: str, row: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {row} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_results_become_a_table_of_means_deviations_and_what_diverged(tmp_path):
    def result(norm: str, batch: int, seed: int, **score: float) -> None:
        job = {"experiment": "detector", "norm": norm, "batch": batch, "seed": seed}
        content = {**job, "diverged": "" if score else "nan", "cpu_seconds": 30, **score}
        (tmp_path / f"{norm}-{batch}-{seed}.json").write_text(json.dumps(content))

    for seed, ap in enumerate((10.0, 12.0)):
        result("GN+WS", 1, seed, AP=ap + 5)
        result("GN+WS", 2, seed)
        result("BN", 1, seed, AP=ap)
        result("BN", 2, seed, **({"AP": ap} if seed else {}))
    summary.collect(tmp_path, tmp_path)
    rows = summary.read(tmp_path, "detector")
    assert [row["diverged"] for row in rows].count("nan") == 3 and len(rows) == 8
    table = summary.scores_table(rows, "AP")
    assert cells(table, "norm") == ["1 per step", "2 per step"]
    assert cells(table, "GN+WS") == ["16.0 ± 1.4", "diverged"]
    assert cells(table, "BN") == ["11.0 ± 1.4", "diverged"]
    assert table.index("| BN") < table.index("| GN+WS")


def test_the_chosen_rate_is_in_bold(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "SCORES", {"detector": "AP"})
    tried = [(0.12, ""), (0.06, 7), (0.03, 8)]
    rows = [{"norm": "GN", "seed": 100, "reference_lr": lr, "AP": ap} for lr, ap in tried]
    write(tmp_path, "detector_lr", *rows)
    write(tmp_path, "detector", {"norm": "GN", "reference_lr": 0.06, "AP": 1})
    table = summary.rates_table(tmp_path)
    assert "detector, AP at 0.03, 0.06, 0.12" in table
    assert cells(table, "GN") == ["8.0, **7.0**, diverged"]


def test_differences_are_paired_by_seed_and_bold_if_all_agree(tmp_path):
    scores = {"BN": {0: 10, 1: 11, 2: 12}, "GN": {1: 5}, "GN+WS": {2: 15, 1: 13, 0: 11}}
    scores |= {"BCN": {0: 10, 1: ""}, "BCN+WS": {1: 10, 0: 11, 2: 11}}
    rows = [
        {"norm": norm, "seed": seed, "AP": score, "AP_batch_statistics": 2 * seed + 9}
        for norm, by_seed in scores.items()
        for seed, score in by_seed.items()
    ]
    for name in ("detector", "detector_steps", "finetune"):
        write(tmp_path, name, *rows)
    of_accuracy = [{name.replace("AP", "accuracy"): v for name, v in r.items()} for r in rows]
    for name in ("classifier", "fashion"):
        write(tmp_path, name, *of_accuracy)
    table = summary.differences_table(tmp_path)
    assert cells(table, "detector: GN+WS - BN") == ["**2.0 ± 1.0**", *3 * ["not measured"]]
    assert cells(table, "detector: GN+WS - GN")[0] == "8.0"
    assert cells(table, "detector: BCN+WS - BN")[0] == "-0.3 ± 1.2"
    assert cells(table, "detector: BCN+WS - BCN")[0] == "diverged"
    table = summary.batch_statistics_table(tmp_path)
    assert cells(table, "fashion, running")[:2] == ["11.0 ± 1.0", "not measured"]
    assert cells(table, "fashion, difference")[0] == "0.0 ± 1.0"


def test_equal_steps_include_those_of_the_experiment_of_equal_images(tmp_path):
    write(tmp_path, "detector_steps", {"norm": "GN", "AP": 1})
    write(tmp_path, "detector", *({"norm": "GN", "batch": b, "AP": b} for b in (1, 2, 4)))
    table = summary.scores_table(summary.equal_steps(tmp_path), "AP")
    assert cells(table, "GN") == ["1.0", "4.0"]
