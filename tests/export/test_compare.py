"""Pairing detections: what is the same, what is not."""

import torch

from gnws_d2.projects.export import EXACT, ROUNDED, Outputs, compare


def is_equal(expected: Outputs, found: Outputs) -> bool:
    result = compare(expected, found)
    return result.expected == result.found == result.same


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
            result = compare(outputs(), tuple(changed))
            assert (result.expected, result.found, result.same) == (4, 4, 3 + equal), index
    classes = (*outputs()[:2], torch.tensor([0, 1, 9, 3]), outputs()[3])
    assert compare(outputs(), classes).same == 3


def test_a_detection_counts_once_and_others_count_against():
    twice = tuple(torch.cat([output[:1], output[:1], output[2:]]) for output in outputs())
    result = compare(outputs(), twice)
    assert (result.expected, result.found, result.same) == (4, 4, 3)
    fewer = compare(outputs(), tuple(output[:3] for output in outputs()))
    assert (fewer.expected, fewer.found, fewer.same) == (4, 3, 3)
    nothing = tuple(output[:0] for output in outputs())
    assert is_equal(nothing, nothing)
    assert not is_equal(nothing, outputs()) and not is_equal(outputs(), nothing)


def test_a_map_is_one_detection():
    a = torch.rand(3, 8, 8)
    assert is_equal((a,), (a + 0.0005,)) and not is_equal((a,), (a + 0.01,))


def test_a_mask_may_count_on_average():
    """One pixel that is wrong is no other mask in bfloat16, a shifted box is another detection."""
    changed = outputs()
    changed[3][1, 0, 5, 5] = 1 - changed[3][1, 0, 5, 5].round()
    assert compare(outputs(), changed, EXACT).same == 3
    assert compare(outputs(), changed, ROUNDED).same == 4
    changed[3][1] = 1 - changed[3][1].round()
    changed[0][2, 0] -= 5
    assert compare(outputs(), changed, ROUNDED).same == 2
