"""Which class is taken for which other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from .matching import evaluate, per_image


def confusion_matrix(
    truth: COCO, results: Sequence[dict[str, Any]], task: str, threshold: float
) -> np.ndarray:
    """Count objects (rows) by the class that they are detected as (columns).

    Detections with a score of at least ``threshold`` are matched with objects of any class at an
    IoU of 0.5, the highest score first; crowds are left out.

    Returns:
        (K + 1, K + 1) counts, classes in the order of their ids. The last column counts objects
        that are missed, the last row detections where no object is.
    """
    kept = [result for result in results if result["score"] >= threshold]
    evaluation = evaluate(truth, kept, task, by_class=False)
    index = {id_: k for k, id_ in enumerate(sorted(truth.getCatIds()))}
    background = len(index)
    matrix = np.zeros((background + 1, background + 1), dtype=int)
    detected, objects = evaluation.cocoDt.anns, evaluation.cocoGt.anns
    for found in per_image(evaluation):
        for id_, matched, ignored in zip(
            found["dtIds"], found["dtMatches"][0], found["dtIgnore"][0], strict=True
        ):
            if not ignored and not matched:
                matrix[background, index[detected[id_]["category_id"]]] += 1
        for id_, finder, ignored in zip(
            found["gtIds"], found["gtMatches"][0], found["gtIgnore"], strict=True
        ):
            if not ignored:
                column = index[detected[int(finder)]["category_id"]] if finder else background
                matrix[index[objects[id_]["category_id"]], column] += 1
    return matrix


def most_confused(
    matrix: np.ndarray, classes: Sequence[str], number: int = 10
) -> list[tuple[str, str, int, float]]:
    """The pairs of different classes that are confused most often.

    Returns:
        (class, detected as, count, share of the class's objects), the highest count first.
    """
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:number]
    pairs = zip(*np.unravel_index(order, between.shape), strict=True)
    return [
        (classes[i], classes[j], int(between[i, j]), float(between[i, j] / matrix[i].sum()))
        for i, j in pairs
        if between[i, j]
    ]
