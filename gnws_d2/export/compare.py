"""Whether a file detects what the model detects."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .interface import Outputs

TOLERANCE = 1e-3  # of the longer side of a box; of scores and probabilities


@dataclass(frozen=True)
class Comparison:
    """Numbers of detections: the model's, the file's, and how many of them are the same; and the
    largest difference of those, see :func:`compare`."""

    expected: int
    found: int
    same: int
    difference: float

    @property
    def equal(self) -> bool:
        return self.expected == self.found == self.same


def compare(expected: Outputs, found: Outputs, tolerance: float = TOLERANCE) -> Comparison:
    """Pair the detections of two outputs of a :class:`Detector`, in any order, because equal scores
    may change places. A map, as of semantic segmentation, counts as one detection.

    Args:
        tolerance: how far two detections may differ and be the same: the corners of their boxes in
            parts of the longer side (of one pixel, where it is shorter), their scores, and each
            pixel's probability of their masks.
    """
    distances = _distances(expected, found)
    same, largest = 0, 0.0
    for i in range(len(distances)):
        nearest, j = distances[i].min(0) if distances.shape[1] else (torch.inf, 0)
        if nearest <= tolerance:
            same, largest = same + 1, max(largest, float(nearest))
            distances[:, j] = torch.inf
    return Comparison(len(distances), distances.shape[1], same, largest)


def _distances(expected: Outputs, found: Outputs) -> torch.Tensor:
    """(N, M): the largest difference, in any output, of each detection from each other."""
    if len(expected) == 1:
        expected, found = (expected[0][None],), (found[0][None],)
    each = []  # boxes first
    for ours, theirs in zip(expected, found, strict=True):
        a, b = (t.double().reshape(len(t), *t.shape[1:], 1).flatten(1) for t in (ours, theirs))
        each.append((a[:, None] - b[None]).abs().amax(-1))
    if len(each) > 1:
        boxes = expected[0].double()
        each[0] /= (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1)[:, None]
    return torch.stack(each).amax(0)
