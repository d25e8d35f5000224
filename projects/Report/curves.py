"""Plots of an evaluation and of a training, one figure each, without pyplot's global state."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler  # a part of matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .matching import MATCHING_IOU, THRESHOLDS, Matches, f1_score, ratio

TASKS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
MEASURES = {"bbox": "box IoU", "segm": "mask IoU", "keypoints": "OKS"}  # of similarity
# The colors of Okabe and Ito, which the color-blind can tell apart.
_CYCLE = [
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"),
    *("#CC79A7", "#7F7F7F", "#8C6D1F", "#5D3A9B", "#1A1A1A"),
]
_GRAY = "#B8B8B8"
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=_CYCLE),
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # of what is between two $
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
}
_SIZE = (4.8, 3.5)  # inches; small, so that the letters are readable on a phone
_RECALLS = np.linspace(0, 1, 101)
_MOST_CLASSES = 30  # in a plot of the confusion matrix: so many fit a page

Series = dict[int, float]  # iteration -> value


def encode(figure: Figure) -> bytes:
    """A PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def precision_recall(matches: Matches) -> Figure:
    """Precision over recall for each class and their mean. More classes than there are colors
    are gray lines."""
    figure, axes = _axes(f"Precision and recall, {MEASURES[matches.task]} {MATCHING_IOU}")
    precision = matches.precision
    present = np.flatnonzero(~np.isnan(precision[0]))
    for k in present.tolist():
        label = f"{short(matches.classes[k])} {100 * precision[:, k].mean():.1f}"
        named: dict[str, Any] = {"linewidth": 1.2, "label": label}
        unnamed = {"linewidth": 0.6, "color": _GRAY}
        axes.plot(_RECALLS, precision[:, k], **named if len(present) <= len(_CYCLE) else unnamed)
    if len(present) > 1:
        mean = precision[:, present].mean(axis=1)
        label = f"mean {100 * mean.mean():.1f}"
        axes.plot(_RECALLS, mean, color="black", linewidth=2.4, label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.03))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    _legend(axes, "AP50")
    return figure


def scores_and_f1(matches: Matches) -> Figure:
    """Precision, recall and F1 of all detections that a score threshold keeps."""
    figure, axes = _axes(f"F1 over the score threshold, {MEASURES[matches.task]} {MATCHING_IOU}")
    right, wrong = (counts.sum(axis=0) for counts in matches.kept)
    objects = matches.objects.sum()
    axes.plot(THRESHOLDS, f1_score(right, wrong, objects), linewidth=2.4, label="F1")
    axes.plot(THRESHOLDS, ratio(right, right + wrong), label="precision")
    axes.plot(THRESHOLDS, ratio(right, objects), label="recall")
    if (threshold := matches.suggested_threshold) is not None:
        label = f"highest F1: {threshold:.2f}"
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=label)
    axes.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(axes)
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str], task: str, threshold: float) -> Figure:
    """The percentages of each row, whose count stands beside its name. Of more than 30 classes,
    those that are confused with others most often."""
    names = [*(short(name) for name in classes), "nothing there"]
    totals, shares = matrix.sum(axis=1), ratio(matrix, matrix.sum(axis=1, keepdims=True))
    title, shown = "", np.arange(len(matrix))
    if len(classes) > _MOST_CLASSES:
        between = matrix[:-1, :-1] * (1 - np.eye(len(classes), dtype=int))
        order = np.argsort(-(between.sum(axis=0) + between.sum(axis=1)), kind="stable")
        shown = np.append(np.sort(order[:_MOST_CLASSES]), len(classes))
        title = f", the {_MOST_CLASSES} most confused of {len(classes)} classes"
    shares = np.nan_to_num(shares[np.ix_(shown, shown)])
    side, size = max(_SIZE[0], 0.26 * len(shown) + 1.8), 8 if len(shown) <= 14 else 7
    title += f"\n{MEASURES[task]} {MATCHING_IOU}, score {threshold:.2f} or more"
    figure, axes = _axes(f"Confusion, % of each row{title}", (side, side * 0.92))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(shares), strict=True):
        color, text = "white" if shares[i, j] > 0.55 else "black", f"{100 * shares[i, j]:.0f}"
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    ticks, look = range(len(shown)), {"fontsize": size, "parse_math": False}
    axes.set_xticks(ticks, [*(names[k] for k in shown[:-1]), "missed"], rotation=90, **look)
    axes.set_yticks(ticks, [f"{names[k]} ({totals[k]})" for k in shown], **look)
    axes.set(xlabel="detected as", ylabel="truth (number)")
    axes.spines[:].set_visible(True)
    return figure


def read_history(file: Path) -> dict[str, Series]:
    """Each metric of ``file`` over the iterations; empty if the file does not exist.

    Detectron2 appends to the file. Where a resumed or repeated training goes back to an earlier
    iteration, what the file has from there on is dropped. So is a line that was cut off when a
    training was killed.
    """
    values: dict[str, Series] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        iteration = entry.pop("iteration")
        # The loss is in every line but those of evaluations, which may follow a later iteration.
        if "total_loss" in entry and iteration <= max(values.get("total_loss") or [-1]):
            values = {
                name: {i: value for i, value in course.items() if i < iteration}
                for name, course in values.items()
            }
        for name, value in entry.items():
            values.setdefault(name, {})[iteration] = value
    return {name: dict(sorted(course.items())) for name, course in values.items() if course}


def over_iterations(history: Mapping[str, Series]) -> dict[str, Figure]:
    """The losses, AP and AP50 of each evaluation, and the learning rate over the iterations, those
    that ``history`` has."""
    ap = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50", "keypoints/AP")
    ap += ("sem_seg/mIoU", "panoptic_seg/PQ")
    known, total = sorted(history), "validation/total"
    courses = {
        "loss": ("Loss", [n for n in known if n.startswith(("loss", "total_loss")) or n == total]),
        # With several test datasets, names start with that of the dataset.
        "ap_history": ("Results during training (percent)", [n for n in known if n.endswith(ap)]),
        "learning_rate": ("Learning rate", [n for n in known if n == "lr"]),
    }
    figures = {}
    for kind, (title, names) in courses.items():
        if not names:
            continue
        figures[kind], axes = _axes(title)
        for name in names:
            line: dict[str, Any] = {"linestyle": "--" if name.endswith("50") else "-"}
            if name in ("total_loss", total):
                line |= {"color": "black", "linewidth": 2, "linestyle": "-:"[name == total]}
            marker, label = "o" if kind == "ap_history" or name == total else "", short(name, 34)
            x, y = zip(*history[name].items(), strict=True)
            axes.plot(x, y, marker=marker, markersize=3, label=label, **line)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("iterations")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend(axes)
    return figures


def _axes(title: str, size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title)
    return figure, axes


def short(name: str, most: int = 22) -> str:
    """``name``, without its middle if it is long: similar names often differ at an end."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _legend(axes: Axes, title: str | None = None) -> None:
    if axes.get_legend_handles_labels()[1]:
        with matplotlib.rc_context(_STYLE):
            place = "best" if len(axes.lines) < 50 else "lower left"  # the best takes seconds
            axes.legend(title=title, title_fontsize=8, loc=place)
