"""The tables of docs/micro-batch.md, from CSV files; what diverged or is missing is shown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figures import STYLES
from tabulate import tabulate

EXPERIMENTS = ("detector", "classifier", "smoothness", "channels")
ORDER = tuple(STYLES)  # of norms, in tables and plots

Rows = list[dict[str, str]]


def read(data: Path, name: str) -> Rows:
    """The rows of a CSV file; none if it is missing."""
    file = data / f"{name}.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def values(rows: Rows, key: str, **where: str | int) -> list[float]:
    """The numbers of a column in the selected rows; NaN where a row has none."""
    chosen = [r for r in rows if all(r[name] == str(value) for name, value in where.items())]
    return [float(row[key]) if row.get(key) else np.nan for row in chosen]


def distinct(rows: Rows, key: str) -> list[str]:
    found = dict.fromkeys(row[key] for row in rows)
    if key == "norm":
        return [norm for norm in ORDER if norm in found]
    return sorted(found, key=int)


def mean_and_std(numbers: Sequence[float], digits: int) -> str:
    """ "mean ± standard deviation" over seeds; what diverged is counted behind."""
    finite = [n for n in numbers if np.isfinite(n)]
    if not numbers:
        return "not measured yet"
    if not finite:
        return "diverged"
    text = f"{np.mean(finite):.{digits}f}"
    if len(finite) > 1:
        text += f" ± {np.std(finite, ddof=1):.{digits}f}"
    lost = len(numbers) - len(finite)
    return f"{text} ({lost} of {len(numbers)} diverged)" if lost else text


def scores(rows: Rows, key: str) -> str:
    """A score for each norm (rows) and number of images per step (columns)."""
    batches = distinct(rows, "batch")
    body = [
        [norm, *(mean_and_std(values(rows, key, norm=norm, batch=b), 1) for b in batches)]
        for norm in distinct(rows, "norm")
    ]
    return table(["norm", *(f"{b} per step" for b in batches)], body)


# Name in the table -> column of the CSV file, and the rows that count.
SMOOTHNESS: dict[str, tuple[str, dict[str, int]]] = {
    "raw β": ("raw_beta", {}),
    "raw loss range": ("raw_loss_range", {}),
    "relative β": ("relative_beta", {}),
    "relative β at the start": ("relative_beta", {"images_seen": 0}),
    "relative loss range": ("relative_loss_range", {}),
    "loss": ("raw_loss", {}),
    "gradient along the mean (%)": ("share_along_mean", {}),
    "along the filter (%)": ("share_along_filter", {}),
}


def smoothness_table(rows: Rows) -> str:
    """For each norm, the median over a training; its mean and deviation over seeds."""
    body = []
    for norm in distinct(rows, "norm"):
        cells = [norm]
        for key, where in SMOOTHNESS.values():
            factor = 100 if key.startswith("share") else 1
            each = [
                factor * float(np.median(found))
                for seed in distinct(rows, "seed")
                if (found := values(rows, key, norm=norm, seed=seed, **where))
            ]
            cells.append(mean_and_std(each, 0 if max(each, default=0) >= 100 else 2))
        body.append(cells)
    return table(["norm", *SMOOTHNESS], body)


CHANNELS = {
    "mean_over_std_50": "median of abs(mean) / std",
    "distance_50": "median distance from (0, 1)",
    "distance_95": "95% of distances are below",
    "never_positive": "never positive (%)",
    "always_positive": "always positive (%)",
    "between_50": "median share between images (%)",
}


def channels_table(rows: Rows) -> str:
    body = []
    for norm in distinct(rows, "norm"):
        cells = [norm]
        for key in CHANNELS:
            factor, digits = (100, 1) if key.endswith(("positive", "between_50")) else (1, 2)
            cells.append(mean_and_std([factor * v for v in values(rows, key, norm=norm)], digits))
        body.append(cells)
    return table(["norm", *CHANNELS.values()], body)


def cost_table(data: Path) -> str:
    """How much was run, and what it cost."""
    body = []
    everything: Rows = []
    for name in EXPERIMENTS:
        jobs = list({(r["norm"], r["batch"], r["seed"]): r for r in read(data, name)}.values())
        if not jobs:
            body.append([name, "not measured yet"])
            continue
        seeds = str(len({job["seed"] for job in jobs}))
        body.append([name, *_jobs_and_cost(jobs), seeds, jobs[0]["images"]])
        everything += jobs
    body.append(["all", *_jobs_and_cost(everything)])
    return table(["experiment", "jobs", "diverged", "CPU minutes", "seeds", "images per job"], body)


def _jobs_and_cost(jobs: Rows) -> list[str]:
    minutes = sum(float(job["cpu_seconds"]) for job in jobs) / 60
    return [str(len(jobs)), str(sum(bool(job["diverged"]) for job in jobs)), f"{minutes:.1f}"]


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return tabulate(body, header, tablefmt="github", disable_numparse=True)
