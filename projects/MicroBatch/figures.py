"""The plot of docs/micro-batch.md, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind; without WS in lighter ones, and dashed.
STYLES = {
    "BN": ("#000000", "-", "o"),
    "GN": ("#56B4E9", "--", "s"),
    "GN+WS": ("#0072B2", "-", "s"),
    "BCN": ("#E69F00", "--", "^"),
    "BCN+WS": ("#D55E00", "-", "^"),
}
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "svg.hashsalt": "gnws_d2",  # the same file every time
    }
)

# For each norm, an array of (seeds, points); NaN where a job diverged or was not run.
Lines = Mapping[str, np.ndarray]


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds, (seeds, points), those without a result left out; NaN where none has one, and a
    deviation of 0 where one has."""
    finite = np.ma.masked_invalid(values)
    std = finite.std(axis=0, ddof=1) if len(values) > 1 else 0 * finite[0]
    mean = finite.mean(axis=0)
    return np.ma.filled(mean, np.nan), np.where(np.ma.getmaskarray(mean), np.nan, std.filled(0))


def label_lines(axes: Axes, lines: Lines) -> None:
    """Name each line at its right end, in its colour, the names moved apart where they would touch;
    one without a result at the bottom. Call it when the limits of ``axes`` are set."""
    to_share = axes.transAxes.inverted().transform
    ends, names = {}, {}
    for norm, values in lines.items():
        mean = mean_and_std(values)[0]
        last = mean[np.isfinite(mean)][-1:]
        names[norm] = norm if len(last) else f"{norm} diverged"
        ends[norm] = to_share(axes.transData.transform((1, last[0])))[1] if len(last) else 0.0
    norms = sorted(ends, key=lambda norm: ends[norm])
    gap = 12 / (axes.get_position().height * axes.figure.get_figheight() * 72)
    places: list[float] = []
    for norm in norms:
        places.append(max(ends[norm], places[-1] + gap) if places else ends[norm])
    excess = max(0.0, places[-1] - 1) if places else 0.0
    for i in reversed(range(len(places))):  # down again from the top
        above = places[i + 1] - gap if i + 1 < len(places) else places[i] - excess
        places[i] = min(places[i], above)
    for norm, place in zip(norms, places, strict=True):
        axes.annotate(
            names[norm],
            xy=(1, place),
            xytext=(6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=STYLES[norm][0],
            fontsize=9,
            annotation_clip=False,
        )


def scores_against_batch(batches: Sequence[int], panels: Mapping[str, Lines], file: Path) -> None:
    """Write ``file``.png and ``file``.svg: scores of every norm against the images per step, a
    panel for each experiment by its title; means over seeds with bars of a standard deviation."""
    figure, grid = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.8), squeeze=False)
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        axes.set_xscale("log", base=2)
        for i, (norm, values) in enumerate(lines.items()):
            colour, dash, mark = STYLES[norm]
            aside = 1.03 ** (i - (len(lines) - 1) / 2)  # so that bars do not cover each other
            mean, std = mean_and_std(values)
            bars = axes.errorbar(
                np.asarray(batches) * aside,
                mean,
                std,
                color=colour,
                linestyle=dash,
                linewidth=1.6,
                marker=mark,
                markersize=5,
                capsize=2,
            )
            bars[-1][0].set_linestyle("-")
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.set(xlabel="images per step", title=title)
    figure.draw_without_rendering()
    for axes, lines in zip(grid[0], panels.values(), strict=True):
        label_lines(axes, lines)
    figure.savefig(file.with_suffix(".png"), dpi=130)
    figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
