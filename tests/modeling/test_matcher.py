"""The matcher against a plain loop over the rule of MMDetection's MaxIoUAssigner."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnws_d2.modeling.matcher import MaxIoUMatcher

RPN = ([0.3, 0.7], [0, -1, 1], 0.3)
MASK_RCNN = ([0.5], [0, 1], 0.5)
FASTER_RCNN = ([0.5], [0, 1], None)


def loop(iou, thresholds, labels, low_quality_iou):
    """The object of every candidate, or "negative" or "ignored"."""
    found = []
    for column in zip(*iou, strict=True):
        name = "negative" if max(column) < thresholds[0] else "ignored"
        found.append(column.index(max(column)) if max(column) >= thresholds[-1] else name)
    for box, row in enumerate(iou):
        if low_quality_iou is not None and max(row) >= low_quality_iou:
            best = [value == max(row) for value in row]
            found = [box if b else f for b, f in zip(best, found, strict=True)]
    return found


def as_found(matches, labels):
    names = {0: "negative", -1: "ignored"}
    pairs = zip(matches.tolist(), labels.tolist(), strict=True)
    return [names.get(label, match) for match, label in pairs]


@pytest.mark.parametrize("rule", [RPN, MASK_RCNN, FASTER_RCNN], ids=["rpn", "mask", "faster"])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_it_is_the_loop(rule, data):
    """With IoUs of few values, so that ties are frequent, on the thresholds too. An anchor that is
    best for two boxes belongs to the later; a box below the floor gets none."""
    boxes, candidates = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    tenths = st.lists(st.integers(0, 10), min_size=candidates, max_size=candidates)
    rows = data.draw(st.lists(tenths, min_size=boxes, max_size=boxes))
    iou = torch.tensor(rows, dtype=torch.float64) / 10
    before = iou.clone()
    assert as_found(*MaxIoUMatcher(*rule)(iou)) == loop(iou.tolist(), *rule)
    assert torch.equal(iou, before)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_objects_or_no_candidates(shape):
    matches, labels = MaxIoUMatcher(*RPN)(torch.zeros(shape))
    assert matches.tolist() == labels.tolist() == [0] * shape[1]
