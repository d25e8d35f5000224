"""The tables: of a handful of results, by hand; and those of the document, from its own data."""

import csv
import json
from statistics import mean, stdev

import summary


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


def test_the_documents_tables_are_those_of_its_data():
    text = summary.DOCUMENT.read_text(encoding="utf-8")
    for name, table in summary.tables(summary.DATA).items():
        assert f" -->\n\n{table}\n\n<!-- end of {name} -->" in text
    with (summary.DATA / "detector.csv").open() as file:
        ap = {
            tuple(map(r.get, ("norm", "batch", "seed"))): float(r["AP"])
            for r in csv.DictReader(file)
        }
    less = [ap["GN+WS", "1", seed] - ap["BN", "1", seed] for seed in "012"]
    assert cells(text, "detector: GN+WS - BN")[0] == f"**{mean(less):.1f} ± {stdev(less):.1f}**"
