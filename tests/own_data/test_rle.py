"""Run-length encoded masks, against pycocotools' own encoder and decoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as mask_util

from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data import rle


def arrays(side):
    shapes = npst.array_shapes(min_dims=2, max_dims=2, max_side=side)
    return npst.arrays(np.uint8, shapes, elements=st.integers(0, 1))


# Also with long runs, whose lengths have several digits.
masks = arrays(40) | st.builds(
    lambda mask, *times: np.kron(mask, np.ones(times, np.uint8)),
    *(arrays(5), st.integers(1, 300), st.integers(1, 300)),
)


def pixels(lengths, height, width):
    return np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T


@given(masks)
def test_runs_and_bounds_are_pycocotools(mask):
    height, width = mask.shape
    encoded = mask_util.encode(np.asfortranarray(mask))
    lengths = rle.runs(encoded["counts"].decode(), height, width)
    assert (pixels(lengths, height, width) == mask).all()
    assert (rle.runs(lengths.tolist(), height, width) == lengths).all()
    expected = tuple(mask_util.toBbox(encoded)) if mask.any() else None
    assert rle.bounds(lengths, height) == expected


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_bounds_of_runs_of_which_some_are_empty(counts):
    """pycocotools misreads runs of no pixels."""
    counts.append(-sum(counts) % 6)
    mask = pixels(rle.runs(counts, 6, sum(counts) // 6), 6, sum(counts) // 6)
    x, y = map(np.flatnonzero, (mask.any(0), mask.any(1)))
    expected = (x[0], y[0], np.ptp(x) + 1, np.ptp(y) + 1) if mask.any() else None
    assert rle.bounds(np.array(counts), 6) == expected


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_what_passes_is_what_pycocotools_decodes(text):
    """Any text either is refused, or is a mask that pycocotools decodes to the same runs."""
    height, width = 6, 5
    try:
        lengths = rle.runs(text, height, width)
    except DatasetError:
        return
    again = mask_util.decode({"size": [height, width], "counts": text.encode()})
    assert (again == pixels(lengths, height, width)).all()


DAMAGE = {
    "sum to": ["", [29], [10, 10, 11], [*[2**62] * 4, 30]],
    "negative": [[-1, 31], "N0"],
    "whole numbers": [[30.0], [2**70], [[], 30]],
    "cut off": ["P", "n"],
    "characters": ["\u00e9", "\ud800"],
    "32 bits": ["PPPPPPPPPPP0"],
    "NoneType": [None],
}


@pytest.mark.parametrize("said", DAMAGE)
def test_damage_is_named(said):
    for counts in DAMAGE[said]:
        with pytest.raises(DatasetError, match=said):
            rle.runs(counts, 6, 5)
