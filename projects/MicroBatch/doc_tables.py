"""The tables of docs/micro-batch.md, from CSV files; what diverged or is missing is shown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from experiment import BATCHES
from tabulate import tabulate

# Experiments whose learning rates were chosen -> by what.
SCORES = {
    "detector": "AP",
    "finetune": "AP",
    "classifier": "accuracy",
    "fashion": "accuracy",
}
EXPERIMENTS = (
    *("detector_lr", "detector", "detector_steps", "pretrain", "finetune_lr", "finetune"),
    *("classifier_lr", "classifier", "fashion_lr", "fashion", "smoothness", "channels"),
)
ORDER = ("BN", "BN+WS", "FrozenBN", "GN", "GN+WS", "BCN", "BCN+WS")  # in tables and plots
NOT_MEASURED = "not measured"

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


def by_seed(rows: Rows, key: str, **where: str | int) -> dict[str, float]:
    """The same for each seed."""
    seeds = distinct(rows, "seed")
    return {seed: x for seed in seeds for x in values(rows, key, seed=seed, **where)}


def differences(ours: dict[str, float], theirs: dict[str, float]) -> list[float]:
    """Of the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def distinct(rows: Rows, key: str) -> list[str]:
    found = dict.fromkeys(row[key] for row in rows)
    if key == "norm":
        return [norm for norm in ORDER if norm in found]
    return sorted(found, key=int)


def mean_and_std(numbers: Sequence[float], digits: int) -> str:
    """ "mean ± standard deviation" over seeds; what diverged is counted behind."""
    finite = [n for n in numbers if np.isfinite(n)]
    if not len(numbers):
        return NOT_MEASURED
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


def rates_table(data: Path) -> str:
    """For each norm and experiment, the score at each learning rate that was tried, that of the one
    that was taken in bold."""
    columns: dict[str, dict[str, str]] = {}
    for name, key in SCORES.items():
        tried, taken = read(data, f"{name}_lr"), read(data, name)
        rates = sorted({row["reference_lr"] for row in tried}, key=float)
        column = columns[f"{name}, {key} at {', '.join(rates) or NOT_MEASURED}"] = {}
        for norm in distinct(tried, "norm"):
            best = {row["reference_lr"] for row in taken if row["norm"] == norm}
            cells = [
                (mean_and_std(values(tried, key, norm=norm, reference_lr=rate), 1), rate in best)
                for rate in rates
            ]
            column[norm] = ", ".join(f"**{text}**" if bold else text for text, bold in cells)
    norms = [norm for norm in ORDER if any(norm in column for column in columns.values())]
    body = [[norm, *(column.get(norm, "") for column in columns.values())] for norm in norms]
    return table(["norm", *columns], body)


def batch_statistics_table(data: Path) -> str:
    """Scores of BN with the running statistics of the training, and what those of each batch of
    test images add to them."""
    body = []
    for name, key in SCORES.items():
        rows = [row for row in read(data, name) if row["norm"] == "BN"]
        running, own = (
            [by_seed(rows, column, batch=batch) for batch in BATCHES]
            for column in (key, f"{key}_batch_statistics")
        )
        gaps = map(differences, own, running)
        body.append([f"{name}, running", *(mean_and_std([*x.values()], 1) for x in running)])
        body.append([f"{name}, of the test batch", *(mean_and_std([*x.values()], 1) for x in own)])
        body.append([f"{name}, difference", *(mean_and_std(gap, 1) for gap in gaps)])
    return table(["BN's statistics", *(f"{b} per step" for b in BATCHES)], body)


PAIRS = (
    *(("GN+WS", "BN"), ("GN+WS", "GN")),
    *(("BCN+WS", "BN"), ("BCN+WS", "BCN"), ("BCN+WS", "GN+WS")),
)


def differences_table(data: Path) -> str:
    """What one norm scores more than another from the same seed; in bold where all seeds agree on
    the sign."""
    body = []
    experiments = {"detector": read(data, "detector"), "equal steps": equal_steps(data)}
    experiments |= {name: read(data, name) for name in ("classifier", "fashion")}
    for name, rows in experiments.items():
        key = SCORES.get(name, "AP")
        for pair in PAIRS:
            each_batch = [
                differences(*(by_seed(rows, key, norm=norm, batch=batch) for norm in pair))
                for batch in BATCHES
            ]
            body.append([f"{name}: {' - '.join(pair)}", *map(_bold_if_agreed, each_batch)])
    return table(["difference", *(f"{b} per step" for b in BATCHES)], body)


def _bold_if_agreed(each: list[float]) -> str:
    text = mean_and_std(each, 1)
    agree = len(each) > 1 and abs(np.sign(each).sum()) == len(each)
    return f"**{text}**" if agree else text


def steps_table(data: Path) -> str:
    """Box AP after equally many steps."""
    return scores(equal_steps(data), "AP")


def equal_steps(data: Path) -> Rows:
    """Those with 4 images are of the experiment of equal images, which has as many steps."""
    rows = read(data, "detector_steps")
    steps = {int(row["images"]) // int(row["batch"]) for row in rows}
    same = [r for r in read(data, "detector") if int(r["images"]) // int(r["batch"]) in steps]
    return rows + same


# Name in the table -> column of the CSV file, and the rows that count.
SMOOTHNESS: dict[str, tuple[str, dict[str, int]]] = {
    "raw β": ("raw_beta", {}),
    "relative β": ("relative_beta", {}),
    "relative β at the start": ("relative_beta", {"images_seen": 0}),
    "relative loss range": ("relative_loss_range", {}),
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
    key = ("norm", "batch", "reference_lr", "seed")
    body, minutes = [], 0.0
    for name in EXPERIMENTS:
        jobs = list({tuple(row[k] for k in key): row for row in read(data, name)}.values())
        if not jobs:
            body.append([name, NOT_MEASURED])
            continue
        cost = sum(float(job["cpu_seconds"]) for job in jobs) / 60
        minutes += cost
        diverged = sum(bool(job["diverged"]) for job in jobs)
        seeds = len({job["seed"] for job in jobs})
        images = "-".join(dict.fromkeys(str(f(int(j["images"]) for j in jobs)) for f in (min, max)))
        body.append([name, *map(str, (len(jobs), seeds, images, diverged)), f"{cost:.1f}"])
    header = ["experiment", "jobs", "seeds", "images per job", "diverged", "CPU minutes"]
    return table(header, [*body, ["all", "", "", "", "", f"{minutes:.1f}"]])


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """In Markdown; says so where nothing was measured."""
    if not body:
        return "Not measured."
    return tabulate(body, header, tablefmt="github", disable_numparse=True)
