"""The plot of docs/micro-batch.md, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; without WS lighter and dashed.
STYLES = {
    "BN": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "GN": {"color": "#56B4E9", "linestyle": "--", "marker": "s"},
    "GN+WS": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
    "BCN": {"color": "#E69F00", "linestyle": "--", "marker": "^"},
    "BCN+WS": {"color": "#D55E00", "linestyle": "-", "marker": "^"},
}
SETTINGS = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "gnws_d2",  # the same file every time
}

# For each norm and batch, the scores of all seeds; NaN where a job diverged.
Lines = Mapping[str, Sequence[Sequence[float]]]


def label_lines(axes: Axes, ends: Mapping[str, float]) -> None:
    """Name each line at its right end, at ``ends`` on the y axis, in its colour. Names that would
    overlap are moved up. The limits of ``axes`` must be final."""
    to_share = axes.transAxes.inverted().transform
    gap = 12 / (axes.get_position().height * axes.figure.get_figheight() * 72)
    place = -np.inf
    for norm in sorted(ends, key=ends.get):
        end = to_share(axes.transData.transform((1, ends[norm])))[1]
        place = max(end, place + gap)
        text = {"color": STYLES[norm]["color"], "fontsize": 9, "va": "center"}
        axes.annotate(norm, (1, place), (6, 0), "axes fraction", "offset points", **text)


@plt.rc_context(SETTINGS)
def scores_against_batch(batches: Sequence[int], panels: Mapping[str, Lines], file: Path) -> None:
    """Write ``file``.png and ``file``.svg: the scores of every norm against the images per step,
    one panel for each title. Points are means over seeds, bars their standard deviation."""
    figure, grid = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.8), squeeze=False)
    sizes = {"linewidth": 1.6, "markersize": 5, "capsize": 2}
    ends = []
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        axes.set_xscale("log", base=2)
        means = {norm: [np.nanmean(seeds) for seeds in scores] for norm, scores in lines.items()}
        for i, (norm, scores) in enumerate(lines.items()):
            # The lines lie side by side, so that bars do not cover each other.
            places = np.asarray(batches) * 1.03 ** (i - (len(lines) - 1) / 2)
            stds = [np.nanstd(seeds, ddof=1) for seeds in scores]
            bars = axes.errorbar(places, means[norm], stds, **STYLES[norm], **sizes)
            bars[-1][0].set_linestyle("-")
        ends.append({norm: line[-1] for norm, line in means.items()})
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.set(xlabel="images per step", title=title)
    figure.draw_without_rendering()
    for axes, of_norms in zip(grid[0], ends, strict=True):
        label_lines(axes, of_norms)
    figure.savefig(file.with_suffix(".png"), dpi=130)
    figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
