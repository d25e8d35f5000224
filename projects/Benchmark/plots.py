"""A run's ratios of time as pictures: one for each level and mode, PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from results import CASE, Row, describe, groups

# The same text makes the same file: a random salt would change all names in it.
matplotlib.rcParams["svg.hashsalt"] = "gnws_d2"


def draw(run: dict[str, Any], stem: Path) -> list[Path]:
    """The pictures of a run, in files whose names begin with ``stem``."""
    files = []
    for (level, mode), rows in groups(run["rows"], ("level", "mode")):
        figure = _figure(rows)
        for end in ("png", "svg"):
            files.append(stem.with_name(f"{stem.name}-{level}-{mode}.{end}"))
            metadata = {"Date": None} if end == "svg" else None
            figure.savefig(files[-1], dpi=120, bbox_inches="tight", metadata=metadata)
        plt.close(figure)
    return files


def _figure(rows: list[Row]) -> plt.Figure:
    """A line for each case and variant: the median, and its interval."""
    cases = list(groups(rows, CASE))
    figure, axes = plt.subplots(
        len(cases), 1, squeeze=False, sharex=True, figsize=(8, 0.5 + sum(_height(c) for c in cases))
    )
    for axis, (_, of_case) in zip(axes[:, 0], cases, strict=True):
        shown = [row for row in of_case if row["variant"] != row["base"]]
        for y, row in enumerate(shown):
            median, low, high = row["ratio"]
            axis.plot([low, high], [y, y], color="tab:blue", linewidth=3, alpha=0.5)
            axis.plot(median, y, "o", color="tab:blue")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(range(len(shown)), [row["variant"] for row in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        # The base is not the same for all operations of the kernel level.
        axis.set_title(f"{describe(of_case[0])}: time / {of_case[0]['base']}", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    return figure


def _height(case: tuple[tuple, list[Row]]) -> float:
    return 0.5 + 0.22 * len(case[1])
