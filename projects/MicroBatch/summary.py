#!/usr/bin/env python3
"""docs/micro-batch.md and its plots, from the results of the experiments.

    python projects/MicroBatch/summary.py --results output/micro_batch/small
    python projects/MicroBatch/summary.py    # from the CSV files as they are

The results go into CSV files in docs/micro-batch; everything else is made from those: the tables
between the document's marks, and the plots.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
import numpy as np
from doc_tables import (
    ORDER,
    Rows,
    channels_table,
    cost_table,
    distinct,
    read,
    scores,
    smoothness_table,
    values,
)
from run import read_result

from gnws_d2.files import atomic_write
from gnws_d2.marked_text import replace_marked

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "micro-batch.md"
DATA = ROOT / "docs" / "micro-batch"


def collect(results: Path, data: Path) -> None:
    """Write the results in a folder as CSV: a row for each one measured, and a loss curve a job.

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
        curve = {f"loss_{i}": loss for i, loss in enumerate(result["curve"], 1)}
        key = {"experiment": experiment, **job}
        tables.setdefault("curves", []).append({**key, **curve})
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
        "detector AP": scores(read(data, "detector"), "AP"),
        "detector AP50": scores(read(data, "detector"), "AP50"),
        "classifier accuracy": scores(read(data, "classifier"), "accuracy"),
        "smoothness": smoothness_table(read(data, "smoothness")),
        "channels": channels_table(read(data, "channels")),
        "cost": cost_table(data),
    }
    for name, made in tables.items():
        text = replace_marked(text, name, f"\n{made}\n")
    return text


def draw(data: Path) -> None:
    """All plots, beside the CSV files that they are made from."""
    curves = read(data, "curves")
    for name, key, label in (
        ("detector", "AP", "box AP on Digits (one class)"),
        ("classifier", "accuracy", "accuracy on held-out scans (%)"),
    ):
        rows = read(data, name)
        if not rows:
            continue
        batches = distinct(rows, "batch")
        lines = _over_seeds(rows, key, "batch", batches)
        figures.score_against_batch([int(b) for b in batches], lines, label, data / name)
        mine = [row for row in curves if row["experiment"] == name]
        points = [k for k in mine[0] if k.startswith("loss_") and any(row[k] for row in mine)]
        images = np.arange(1, len(points) + 1) / len(points) * int(mine[0]["images"])
        panels = {int(b): _columns_over_seeds(mine, points, batch=b) for b in batches}
        figures.loss_curves(images, panels, data / f"{name}_loss", log=name == "classifier")
    if rows := read(data, "smoothness"):
        _draw_smoothness(rows, data / "smoothness")
    if rows := read(data, "channels"):
        steps = range(0, 101, 5)
        panels = {
            title: _columns_over_seeds(rows, [f"{key}_{step}" for step in steps])
            for key, title in (
                ("positive", "share of positive values before ReLU"),
                ("mean_over_std", "abs(mean) / std before ReLU"),
                ("distance", "distance from (0, 1) after the norm"),
            )
        }
        figures.quantiles(list(steps), panels, data / "channels")


def _columns_over_seeds(rows: Rows, columns: Sequence[str], **where: str) -> figures.Lines:
    """For each norm, several columns of one row a seed: (seeds, columns)."""
    rows = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return {
        norm: np.array([values(rows, column, norm=norm) for column in columns]).T
        for norm in distinct(rows, "norm")
    }


def _over_seeds(rows: Rows, column: str, key: str, points: Sequence[str]) -> figures.Lines:
    """For each norm, one column at several values of ``key``: (seeds, points), NaN where there is
    no result."""
    lines = {}
    for norm in distinct(rows, "norm"):
        lines[norm] = np.full((len(distinct(rows, "seed")), len(points)), np.nan)
        for i, seed in enumerate(distinct(rows, "seed")):
            for j, point in enumerate(points):
                if found := values(rows, column, norm=norm, seed=seed, **{key: point}):
                    lines[norm][i, j] = found[0]
    return lines


def _draw_smoothness(rows: Rows, file: Path) -> None:
    rows = [row for row in rows if row["images_seen"]]  # not those that diverged
    images = distinct(rows, "images_seen")
    titles = {
        "raw_beta": "β in the weights (raw)",
        "relative_beta": "β in w / |w| (relative)",
        "raw_loss_range": "range of the loss, 1/2 to 4 learning rates (raw)",
        "relative_loss_range": "range of the loss over fixed distances in w / |w| (relative)",
    }
    panels = {title: _over_seeds(rows, key, "images_seen", images) for key, title in titles.items()}
    figures.against_images([int(i) for i in images], panels, file, columns=2)


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
