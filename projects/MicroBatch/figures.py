"""Plots of what was measured, as PNG and SVG. A norm has the same colour, line and mark in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

# Okabe and Ito's colours, told apart by the colour-blind; without WS in lighter ones, and dashed.
STYLES = {
    "BN": ("#000000", "-", "o"),
    "BN+WS": ("#009E73", "-", "P"),
    "FrozenBN": ("#999999", ":", "X"),
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

# A line: for each norm, an array of (seeds, points).
Lines = Mapping[str, np.ndarray]


def logarithmic(axes: Axes) -> None:
    """A logarithmic scale with plain numbers, 1, 2, 3 and 5 of each decade."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def save(figure: Figure, file: Path) -> None:
    """Write ``file``.png and ``file``.svg, the same bytes for the same plot."""
    figure.savefig(file.with_suffix(".png"), dpi=130)
    figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds, (seeds, points), those that diverged left out; NaN where all did, and a deviation
    of 0 where one is left."""
    finite = np.ma.masked_invalid(values)
    std = finite.std(axis=0, ddof=1) if len(values) > 1 else 0 * finite[0]
    mean = finite.mean(axis=0)
    return np.ma.filled(mean, np.nan), np.where(np.ma.getmaskarray(mean), np.nan, std.filled(0))


def draw_lines(
    axes: Axes, x: Sequence[float], lines: Lines, *, marks: bool = False, band: bool = True
) -> None:
    """Mean over seeds of each norm. On marks, which are moved a little aside, bars of a standard
    deviation; without marks, a band from the smallest to the largest."""
    for i, (norm, values) in enumerate(lines.items()):
        colour, dash, mark = STYLES[norm]
        mean, std = mean_and_std(values)
        style = {"color": colour, "linestyle": dash, "linewidth": 1.6}
        if marks:
            aside = 1.02 ** (i - (len(lines) - 1) / 2)
            where = np.asarray(x) * aside
            bars = axes.errorbar(where, mean, std, marker=mark, markersize=5, capsize=2, **style)
            bars[-1][0].set_linestyle("-")
        else:
            axes.plot(x, mean, **style)
            if band:
                low, high = np.fmin.reduce(values), np.fmax.reduce(values)
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def label_lines(axes: Axes, lines: Lines) -> None:
    """Name each line at its right end, in its colour, the names moved apart where they would touch;
    one that diverged everywhere at the bottom. Call it when the limits of ``axes`` are set."""
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


def score_against_batch(batches: Sequence[int], lines: Lines, score: str, file: Path) -> None:
    """A score of every norm against the images per step; what diverged in all seeds has no mark."""
    figure, axes = plt.subplots(figsize=(6.4, 4))
    axes.set_xscale("log", base=2)
    draw_lines(axes, batches, lines, marks=True)
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.set(xlabel="images per step", ylabel=score)
    figure.draw_without_rendering()
    label_lines(axes, lines)
    save(figure, file)


def loss_curves(
    images: Sequence[float], panels: Mapping[int, Lines], file: Path, *, log: bool
) -> None:
    """The training loss against the images seen, one panel for each number of images per step."""
    figure, grid = plt.subplots(1, len(panels), figsize=(11, 3.4), sharey=True, squeeze=False)
    for axes, (batch, lines) in zip(grid[0], panels.items(), strict=True):
        draw_lines(axes, images, lines)
        axes.set_title(f"{batch} image{'s' if batch > 1 else ''} per step")
        axes.set_xlabel("images seen")
        if log:
            logarithmic(axes)
    grid[0][0].set_ylabel("training loss")
    figure.draw_without_rendering()
    label_lines(grid[0][-1], panels[max(panels)])
    save(figure, file)


def against_images(
    images: Sequence[float], panels: Mapping[str, Lines], file: Path, *, columns: int
) -> None:
    """Measures of smoothness during training, one panel each, in logarithmic scale."""
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(10, 3.3 * rows), squeeze=False)
    for i, (axes, (title, lines)) in enumerate(zip(grid.flat, panels.items(), strict=True)):
        draw_lines(axes, images, lines, band=False)
        logarithmic(axes)
        axes.set_title(title)
        if i // columns == rows - 1:
            axes.set_xlabel("images seen")
    figure.draw_without_rendering()
    for axes, lines in zip(grid.flat, panels.values(), strict=True):
        label_lines(axes, lines)
    save(figure, file)


def quantiles(shares: Sequence[float], panels: Mapping[str, Lines], file: Path) -> None:
    """The distribution of measures over channels: the value below which a share of them lies."""
    figure, grid = plt.subplots(1, len(panels), figsize=(11, 3.6), squeeze=False)
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        draw_lines(axes, shares, lines)
        axes.set_title(title)
        axes.set_xlabel("share of channels below (%)")
        axes.set_ylim(bottom=0)
    figure.draw_without_rendering()
    for axes, lines in zip(grid[0], panels.values(), strict=True):
        label_lines(axes, lines)
    save(figure, file)
