#!/usr/bin/env python3
"""docs/micro-batch.md and its plot, from the results of the experiments.

    python projects/MicroBatch/summary.py --results output/micro_batch
    python projects/MicroBatch/summary.py    # from the CSV files as they are

The results go into CSV files in docs/micro-batch; everything else is made from those: the tables
between the document's marks, and the plot.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import figures
import numpy as np
from doc_tables import (
    ORDER,
    SCORES,
    Rows,
    batch_statistics_table,
    channels_table,
    cost_table,
    differences_table,
    distinct,
    rates_table,
    read,
    scores,
    smoothness_table,
    steps_table,
    values,
)
from experiment import BATCHES
from run import read_result

from gnws_d2.files import atomic_write
from gnws_d2.marked_text import replace_marked

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "micro-batch.md"
DATA = ROOT / "docs" / "micro-batch"


def collect(results: Path, data: Path) -> None:
    """Write the results in a folder as CSV: a row for each one measured.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    files = sorted(results.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{results} holds no results. Run an experiment into it.")
    tables: dict[str, list[dict[str, Any]]] = {}
    for result in filter(None, map(read_result, files)):
        job = dict(result["job"])
        experiment = job.pop("experiment")
        cost = {"diverged": result["diverged"], "cpu_seconds": result["cpu_seconds"]}
        for row in result["rows"] or [{}]:  # one that diverged has a row too
            tables.setdefault(experiment, []).append({**job, **cost, **row})
    data.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        header = dict.fromkeys(key for row in rows for key in row)
        rows.sort(key=lambda row: ORDER.index(row["norm"]))
        with atomic_write(data / f"{name}.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def document(text: str, data: Path) -> str:
    """``text`` with a new table between each pair of marks."""
    tables = {
        **{name: scores(read(data, name), key) for name, key in SCORES.items()},
        "equal steps": steps_table(data),
        "differences": differences_table(data),
        "statistics of BN": batch_statistics_table(data),
        "pretrain": scores(read(data, "pretrain"), "accuracy"),
        "learning rates": rates_table(data),
        "smoothness": smoothness_table(read(data, "smoothness")),
        "channels": channels_table(read(data, "channels")),
        "cost": cost_table(data),
    }
    for name, made in tables.items():
        text = replace_marked(text, name, f"\n{made}\n")
    return text


def draw(data: Path) -> None:
    """The plot, beside the CSV files that it is made from."""
    panels = {
        "detector: box AP on Digits": ("detector", "AP"),
        "classifier: accuracy on scans (%)": ("classifier", "accuracy"),
        "classifier: accuracy on FashionMNIST (%)": ("fashion", "accuracy"),
    }
    lines = {}
    for title, (name, key) in panels.items():
        if rows := read(data, name):
            lines[title] = lines_over_seeds(rows, key)
    figures.scores_against_batch(BATCHES, lines, data / "scores")


def lines_over_seeds(rows: Rows, key: str) -> figures.Lines:
    """For each norm a score at each of BATCHES: (seeds, batches), NaN where there is no result."""
    lines = {}
    for norm in distinct(rows, "norm"):
        lines[norm] = np.full((len(distinct(rows, "seed")), len(BATCHES)), np.nan)
        for i, seed in enumerate(distinct(rows, "seed")):
            for j, batch in enumerate(BATCHES):
                if found := values(rows, key, norm=norm, seed=seed, batch=batch):
                    lines[norm][i, j] = found[0]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="folder of an experiment's --output")
    args = parser.parse_args()
    if args.results:
        collect(args.results, DATA)
    text = document(DOCUMENT.read_text(encoding="utf-8"), DATA)
    with atomic_write(DOCUMENT) as partial:
        partial.write_text(text, encoding="utf-8")
    draw(DATA)
    print(DOCUMENT)


if __name__ == "__main__":
    main()
