"""Whether a file detects what the model detects."""

from dataclasses import dataclass

import torch

from .interface import Outputs


@dataclass(frozen=True)
class Tolerance:
    """How far two detections may differ and be the same, and how many have to be."""

    # Of the corners of their boxes in parts of the longer side (of one pixel, where it is shorter),
    # their scores, and their masks' probabilities.
    difference: float = 1e-3
    share: float = 1.0  # of the detections in all images together that have to be the same, 0 to 1
    mean_mask: bool = False  # whether a mask's pixels may differ by that on average, not each


EXACT = Tolerance()  # for the same operations in float32
# For sums in another order, and another order of equal scores, as proposals have where no unit of
# RPN's hidden layer is active: of two that suppress each other, another one may stay.
REORDERED = Tolerance(share=0.95)
# For 8 bits of precision, bfloat16 and integers: more of them may. The edge of a mask is steep, so
# single pixels say nothing.
ROUNDED = Tolerance(0.05, share=0.8, mean_mask=True)


@dataclass(frozen=True)
class Comparison:
    """Numbers of detections: the model's, the file's, and how many of them are the same; and the
    largest difference of those, see :func:`compare`."""

    expected: int
    found: int
    same: int
    difference: float


def compare(expected: Outputs, found: Outputs, tolerance: Tolerance = EXACT) -> Comparison:
    """Pair the detections of two outputs of a :class:`Detector`, in any order, because equal scores
    may change places. A map, as of semantic segmentation, counts as one detection.
    """
    distances = _distances(expected, found, tolerance.mean_mask)
    same, largest = 0, 0.0
    for i in range(len(distances)):
        nearest, j = distances[i].min(0) if distances.shape[1] else (torch.inf, 0)
        if nearest <= tolerance.difference:
            same, largest = same + 1, max(largest, float(nearest))
            distances[:, j] = torch.inf
    return Comparison(len(distances), distances.shape[1], same, largest)


def _distances(expected: Outputs, found: Outputs, mean_mask: bool) -> torch.Tensor:
    """(N, M): the largest difference, in any output, of each detection from each other."""
    if len(expected) == 1:
        expected, found = (expected[0][None],), (found[0][None],)
    each = []  # boxes first
    for ours, theirs in zip(expected, found, strict=True):
        a, b = (t.double().reshape(len(t), *t.shape[1:], 1).flatten(1) for t in (ours, theirs))
        difference = (a[:, None] - b[None]).abs()
        mean = mean_mask and ours.dim() == 4
        each.append(difference.mean(-1) if mean else difference.amax(-1))
    if len(each) > 1:
        boxes = expected[0].double()
        each[0] /= (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1)[:, None]
    return torch.stack(each).amax(0)
