"""The course of a training, from the metrics.json that Detectron2 writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

Series = tuple[np.ndarray, np.ndarray]  # iterations, values


def read_history(file: Path) -> dict[str, Series]:
    """Each metric of ``file`` over the iterations; empty if the file does not exist.

    Detectron2 appends to the file. Where a resumed or repeated training goes back to an earlier
    iteration, what the file has from there on is dropped. So is a line that was cut off when a
    training was killed.
    """
    values: dict[str, dict[int, float]] = {}
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
    return {
        name: (np.array(sorted(course)), np.array([course[i] for i in sorted(course)], float))
        for name, course in values.items()
        if course
    }
