#!/usr/bin/env python3
"""Writes the tables and the plot of docs/micro-batch.md.

    python projects/MicroBatch/summary.py --results output/micro_batch
    python projects/MicroBatch/summary.py    # from the CSV files as they are

The results of the experiments become CSV files in docs/micro-batch. The tables between the
document's marks and the plot are made from those.
"""

import csv
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from experiment import BATCHES
from matplotlib import pyplot as plt
from tabulate import tabulate

from gnws.marked_text import update_marked

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "micro-batch.md"
DATA = ROOT / "docs" / "micro-batch"

ORDER = ("BN", "FrozenBN", "GN", "GN+WS", "BCN", "BCN+WS")  # of norms
# The experiments that compare norms at a chosen learning rate -> the column of the score.
SCORES = {"detector": "AP", "finetune": "AP", "classifier": "accuracy", "fashion": "accuracy"}
EXPERIMENTS = (
    *("detector_lr", "detector", "detector_steps", "pretrain", "finetune_lr", "finetune"),
    *("classifier_lr", "classifier", "fashion_lr", "fashion"),
)
PAIRS = ("GN+WS - BN", "GN+WS - GN", "BCN+WS - BN", "BCN+WS - BCN", "BCN+WS - GN+WS")
PANELS = {
    "detector": "detector: box AP on Digits",
    "classifier": "classifier: accuracy on scans (%)",
    "fashion": "classifier: accuracy on FashionMNIST (%)",
}
# Okabe and Ito's colours, which the colour-blind can tell apart; without WS lighter and dashed.
STYLES = {
    "BN": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "GN": {"color": "#56B4E9", "linestyle": "--", "marker": "s"},
    "GN+WS": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
    "BCN": {"color": "#E69F00", "linestyle": "--", "marker": "^"},
    "BCN+WS": {"color": "#D55E00", "linestyle": "-", "marker": "^"},
}
SETTINGS = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}

PER_STEP = {str(batch): f"{batch} per step" for batch in BATCHES}

Rows = list[dict[str, str]]
BySeed = dict[str, float]  # a number for each seed; NaN if its job diverged


def collect(results: Path, data: Path) -> None:
    """Write the results in a folder as one CSV file for each experiment."""
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(results.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        tables[result.pop("experiment")].append(result)
    for name, rows in tables.items():
        header = dict.fromkeys(column for row in rows for column in row)
        rows.sort(key=lambda row: ORDER.index(row["norm"]))
        with (data / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, header, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                short = {k: f"{v:.4g}" for k, v in row.items() if isinstance(v, float)}
                writer.writerow(row | short)


def read(data: Path, name: str) -> Rows:
    with (data / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def equal_steps(data: Path) -> Rows:
    """The rows of equally many steps: ``detector`` at 4 images has those of ``detector_steps``."""
    four = [row for row in read(data, "detector") if row["batch"] == "4"]
    return read(data, "detector_steps") + four


def distinct(rows: Rows, column: str) -> list[str]:
    """The values in a column, in ORDER or by size."""
    return sorted({row[column] for row in rows}, key=ORDER.index if column == "norm" else float)


def by_norm(rows: Rows, column: str, of: str = "batch") -> dict[str, defaultdict[str, BySeed]]:
    """The numbers in a column, by norm, by the value ``of`` another column, and by seed."""
    found = {norm: defaultdict(dict) for norm in distinct(rows, "norm")}
    for row in rows:
        found[row["norm"]][row[of]][row["seed"]] = float(row[column] or "nan")
    return found


def difference(ours: BySeed, theirs: BySeed) -> BySeed:
    """Ours less theirs, for the seeds that both have."""
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def mean_and_std(numbers: BySeed) -> str:
    """ "mean ± standard deviation" over seeds, or "diverged" if a job did."""
    values = [*numbers.values()]
    if not values:
        return "not measured"
    if not np.isfinite(values).all():
        return "diverged"
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def bold_if_agreed(differences: BySeed) -> str:
    """The same, in bold if all seeds agree on the sign."""
    text = mean_and_std(differences)
    signs = np.sign([*differences.values()])
    return f"**{text}**" if len(signs) > 1 and abs(signs.sum()) == len(signs) else text


def table(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    return tabulate(body, header, tablefmt="github", disable_numparse=True)


def scores_table(rows: Rows, column: str) -> str:
    """A score for each norm (rows) and number of images per step (columns)."""
    batches = distinct(rows, "batch")
    scores = by_norm(rows, column).items()
    body = [[norm, *(mean_and_std(found[batch]) for batch in batches)] for norm, found in scores]
    return table(["norm", *(f"{batch} per step" for batch in batches)], body)


def rates_table(data: Path) -> str:
    """For each norm and experiment, the score at each learning rate; the chosen one in bold."""
    columns: dict[str, dict[str, str]] = {}
    for name, key in SCORES.items():
        tried = read(data, f"{name}_lr")
        best = {row["norm"]: row["reference_lr"] for row in read(data, name)}
        rates = distinct(tried, "reference_lr")
        column = columns[f"{name}, {key} at {', '.join(rates)}"] = {}
        for norm, found in by_norm(tried, key, "reference_lr").items():
            cells = {rate: mean_and_std(found[rate]) for rate in rates}
            cells[best[norm]] = f"**{cells[best[norm]]}**"
            column[norm] = ", ".join(cells.values())
    norms = [norm for norm in ORDER if any(norm in column for column in columns.values())]
    body = [[norm, *(column.get(norm, "") for column in columns.values())] for norm in norms]
    return table(["norm", *columns], body)


def batch_statistics_table(data: Path) -> str:
    """Scores of BN with its running statistics and with those of each batch of test images."""
    body = []
    for name, column in SCORES.items():
        rows = read(data, name)
        running = by_norm(rows, column)["BN"]
        own = by_norm(rows, f"{column}_batch_statistics")["BN"]
        less = {batch: difference(own[batch], running[batch]) for batch in PER_STEP}
        parts = {"running": running, "of the test batch": own, "difference": less}
        for part, found in parts.items():
            body.append([f"{name}, {part}", *(mean_and_std(found[batch]) for batch in PER_STEP)])
    return table(["BN's statistics", *PER_STEP.values()], body)


def differences_table(data: Path) -> str:
    """The score of one norm less that of another with the same seed."""
    experiments = {"detector": read(data, "detector"), "equal steps": equal_steps(data)}
    experiments |= {name: read(data, name) for name in ("classifier", "fashion")}
    body = []
    for name, rows in experiments.items():
        scores = by_norm(rows, SCORES.get(name, "AP"))
        for pair in PAIRS:
            ours, theirs = pair.split(" - ")
            pairs = ((scores[ours][batch], scores[theirs][batch]) for batch in PER_STEP)
            cells = (bold_if_agreed(difference(*both)) for both in pairs)
            body.append([f"{name}: {pair}", *cells])
    return table(["difference", *PER_STEP.values()], body)


def cost_table(data: Path) -> str:
    """The number of jobs and what they cost."""
    body, total = [], 0.0
    for name in EXPERIMENTS:
        jobs = read(data, name)
        minutes = sum(float(job["cpu_seconds"]) for job in jobs) / 60
        total += minutes
        seeds, images = len(distinct(jobs, "seed")), distinct(jobs, "images")
        diverged = sum(bool(job["diverged"]) for job in jobs)
        body.append([name, len(jobs), seeds, "-".join(images), diverged, f"{minutes:.1f}"])
    header = ["experiment", "jobs", "seeds", "images per job", "diverged", "CPU minutes"]
    return table(header, [*body, ["all", "", "", "", "", f"{total:.1f}"]])


def tables(data: Path) -> dict[str, str]:
    """The tables of the document, by name."""
    return {
        **{name: scores_table(read(data, name), column) for name, column in SCORES.items()},
        "equal steps": scores_table(equal_steps(data), "AP"),
        "differences": differences_table(data),
        "statistics of BN": batch_statistics_table(data),
        "pretrain": scores_table(read(data, "pretrain"), "accuracy"),
        "learning rates": rates_table(data),
        "cost": cost_table(data),
    }


@matplotlib.rc_context(SETTINGS)
def draw(data: Path) -> None:
    """Draw the scores of every norm against the images per step into the folder of the CSV files.
    Points are means over seeds, bars their standard deviation."""
    plt.switch_backend("Agg")
    figure, grid = plt.subplots(1, len(PANELS), figsize=(13, 3.8), layout="constrained")
    for axes, (name, title) in zip(grid, PANELS.items(), strict=True):
        found = by_norm(read(data, name), SCORES[name])
        axes.set_xscale("log", base=2)
        for i, (norm, style) in enumerate(STYLES.items()):
            scores = [[*found[norm][batch].values()] for batch in PER_STEP]
            means, stds = np.mean(scores, axis=1), np.std(scores, axis=1, ddof=1)
            places = np.multiply(BATCHES, 1.03 ** (i - 2))  # or bars would cover each other
            axes.errorbar(places, means, stds, **style, markersize=5, capsize=2, label=norm)
        axes.set_xticks(BATCHES, BATCHES)
        axes.set(xlabel="images per step", title=title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(data / "scores.png", dpi=130)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="the --output folder of the experiments")
    if results := parser.parse_args().results:
        collect(results, DATA)
    update_marked(DOCUMENT, {name: f"\n{made}\n" for name, made in tables(DATA).items()})
    draw(DATA)
    print(DOCUMENT)


if __name__ == "__main__":
    main()
