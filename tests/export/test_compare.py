"""Pairing detections: what is the same, what is not."""

import pytest
import torch

from gnws_d2.errors import GnwsError
from gnws_d2.projects.export import EXACT, FORMATS, ROUNDED, Outputs, compare
from gnws_d2.projects.export.exporter import _compare_all


def counts(expected: Outputs, found: Outputs) -> tuple[int, int, int]:
    result = compare(expected, found)
    return result.expected, result.found, result.same


def outputs(n: int = 4) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    corners = torch.rand(n, 2) * 50
    boxes = torch.cat([corners, corners + 10 + torch.rand(n, 2) * 40], 1)
    scores = torch.linspace(0.9, 0.1, n)
    return boxes, scores, torch.arange(n), torch.rand(n, 1, 28, 28)


def test_the_same_in_another_order():
    a = outputs()
    result = compare(a, tuple(output.flip(0) for output in a))
    assert result.same == result.found == 4 and result.difference == 0


def test_each_output_counts():
    """A box by its longer side, all else by itself."""
    for index, allowed in ((0, 0.009), (1, 0.0009), (3, 0.0009)):
        for factor, equal in ((1, True), (10, False)):
            changed = [output.clone() for output in outputs()]
            changed[index].view(4, -1)[2, -1] += allowed * factor
            assert counts(outputs(), tuple(changed)) == (4, 4, 3 + equal), index
    classes = (*outputs()[:2], torch.tensor([0, 1, 9, 3]), outputs()[3])
    assert counts(outputs(), classes) == (4, 4, 3)
    for change, same in ((0.0005, 1), (0.01, 0)):  # a map is one detection
        map_ = outputs()[3][0]
        assert counts((map_,), (map_ + change,)) == (1, 1, same)


def test_a_detection_counts_once_and_others_count_against():
    twice = tuple(torch.cat([output[:1], output[:1], output[2:]]) for output in outputs())
    assert counts(outputs(), twice) == (4, 4, 3)
    fewer, nothing = (tuple(output[:n] for output in outputs()) for n in (3, 0))
    assert counts(outputs(), fewer) == (4, 3, 3)
    assert counts(nothing, nothing) == (0, 0, 0)
    assert counts(nothing, outputs()) == (0, 4, 0) and counts(outputs(), nothing) == (4, 0, 0)


def test_a_mask_may_count_on_average():
    """One pixel that is wrong is no other mask in bfloat16, a shifted box is another detection."""
    changed = outputs()
    changed[3][1, 0, 5, 5] = 1 - changed[3][1, 0, 5, 5].round()
    assert compare(outputs(), changed, EXACT).same == 3
    assert compare(outputs(), changed, ROUNDED).same == 4
    changed[3][1] = 1 - changed[3][1].round()
    changed[0][2, 0] -= 5
    assert compare(outputs(), changed, ROUNDED).same == 2


def test_of_detections_that_suppress_each_other_one_of_twenty_may_be_another():
    """In a format that sums in another order."""
    expected, tolerance = outputs(100), FORMATS["onnx"].tolerance

    def same(others: int) -> int:
        moved = expected[0] + 1000 * (torch.arange(100) < others)[:, None]
        return _compare_all("onnx", [expected], [(moved, *expected[1:])], tolerance)[0].same

    assert same(others=5) == 95
    with pytest.raises(GnwsError, match="95% have to be the same"):
        same(others=6)
