"""The tables and the plot of docs/reference.md, from the results of compare.py."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter
from recipe import CHANGES, MAIN, OURS, TASKS, THEIRS, WINDOW
from scipy.stats import ttest_ind
from tabulate import tabulate

from gnws.marked_text import update_marked

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference.md"
KINDS = {"bbox": "box AP", "segm": "mask AP"}
MEASURED = {**KINDS, "minutes": "minutes of the processor"}
COLORS = {THEIRS: "#D55E00", OURS: "#0072B2"}  # which the colour-blind can tell apart
Results = Sequence[Mapping[str, Any]]


def write(folder: Path) -> None:
    """Write the document's tables and ``losses.png`` from the results in ``folder``."""
    results = read(folder)
    update_marked(DOCUMENT, {name: f"\n{table}\n" for name, table in tables(results).items()})
    draw(results, folder / "losses.png")
    print(DOCUMENT)


def read(folder: Path) -> Results:
    return [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]


def tables(results: Results) -> dict[str, str]:
    """The tables of the document, by name."""
    return {"trained": trained(results), "exchanged": exchanged(results), "rules": rules(results)}


def trained(results: Results) -> str:
    """AP of both sides, each evaluated by itself, the time, and the difference."""
    rows = []
    for task in TASKS:
        if not any(result["task"] == task for result in results):
            rows.append([task, mean([]), mean([]), ""])
        for kind, name in MEASURED.items():
            theirs, ours = (scores(results, kind, task, side, side) for side in (THEIRS, OURS))
            if theirs and ours:
                rows.append([f"{task}, {name}", mean(theirs), mean(ours), gap(ours, theirs)])
    return table(["", THEIRS, OURS, "difference (95% interval)"], rows)


def exchanged(results: Results) -> str:
    """AP of the same weights in both frameworks."""
    rows = []
    for task in TASKS:
        for side in (THEIRS, OURS):
            for kind, name in KINDS.items():
                columns = [scores(results, kind, task, side, where) for where in (THEIRS, OURS)]
                if all(columns):
                    pairs = [here - there for there, here in zip(*columns, strict=True)]
                    largest = f"{max(pairs, key=abs):+.2f}"
                    label = f"{task} of {side}, {name}"
                    rows.append([label, *(mean(c, 2) for c in columns), largest])
    header = ["weights", f"evaluated in {THEIRS}", f"in {OURS}", "largest difference of a seed"]
    return table(header, rows)


def rules(results: Results) -> str:
    """What changing one rule of a side makes of its AP."""
    rows = []
    for change, side in CHANGES.items():
        cells = []
        for kind in KINDS:
            plain, changed = (scores(results, kind, MAIN, side, side, c) for c in ("", change))
            cells += [mean(changed), gap(changed, plain)]
        rows.append([f"{side}: {change}", *cells])
    return table(["", *(word for name in KINDS.values() for word in (name, "change"))], rows)


def scores(
    results: Results, kind: str, task: str, side: str, where: str, change: str = ""
) -> list[float]:
    """Of each seed, a ``kind`` of AP as evaluated by the side ``where``, or the minutes."""
    wanted = {"task": task, "side": side, "change": change}
    chosen = sorted((r for r in results if wanted.items() <= r.items()), key=lambda r: r["seed"])
    found = ({**r["AP"][where], "minutes": r["minutes"]} for r in chosen)
    return [values[kind] for values in found if kind in values]


def mean(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "not measured"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread} ({len(values)})"


def gap(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The difference of the means, with the 95% interval of Welch's t-test."""
    if min(len(ours), len(theirs)) < 2:
        return ""
    low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return f"{np.mean(ours) - np.mean(theirs):+.1f} ({low:+.1f} to {high:+.1f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


@matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False})
def draw(results: Results, file: Path) -> None:
    """Draw the losses of the first task over each other: means over seeds, and their range."""
    plt.switch_backend("Agg")
    chosen = [r for r in results if r["task"] == MAIN and not r["change"]]
    names = list(chosen[0]["losses"])
    figure, grid = plt.subplots(2, 3, figsize=(9, 5), layout="constrained")
    *places, corner = grid.flat
    for axes, name in zip(places, names, strict=True):
        for side, color in COLORS.items():
            curves = np.array([r["losses"][name] for r in chosen if r["side"] == side])
            steps = WINDOW * np.arange(1, curves.shape[1] + 1)
            axes.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.2, lw=0)
            axes.plot(steps, curves.mean(0), color=color, lw=1.2, label=side)
        axes.set(title=name, xlabel="iteration", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    corner.axis("off")
    corner.legend(*axes.get_legend_handles_labels(), loc="center", frameon=False)
    figure.savefig(file, dpi=110)
