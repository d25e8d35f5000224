"""Run-length encoded masks, against pycocotools' own encoder and decoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as mask_util

from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data import rle

masks = npst.arrays(
    np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
)
# Long runs, whose lengths have several digits.
blocks = st.builds(
    lambda mask, rows, columns: np.kron(mask, np.ones((rows, columns), np.uint8)),
    npst.arrays(
        np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.integers(0, 1)
    ),
    st.integers(1, 300),
    st.integers(1, 300),
)


def compressed(mask):
    return mask_util.encode(np.asfortranarray(mask))["counts"].decode()


@given(masks | blocks)
def test_runs_are_those_that_pycocotools_encoded(mask):
    height, width = mask.shape
    lengths = rle.runs(compressed(mask), height, width)
    decoded = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T
    assert (decoded == mask).all()
    assert (rle.runs(lengths.tolist(), height, width) == lengths).all()


@given(masks | blocks)
def test_bounds_are_pycocotools(mask):
    height, width = mask.shape
    found = rle.bounds(rle.runs(compressed(mask), height, width), height)
    if mask.any():
        expected = mask_util.toBbox(mask_util.encode(np.asfortranarray(mask)))
        assert found == tuple(expected)
    else:
        assert found is None


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_what_passes_is_what_pycocotools_decodes(text):
    """Any text either is refused, or is a mask that pycocotools decodes to the same runs."""
    height, width = 6, 5
    try:
        lengths = rle.runs(text, height, width)
    except DatasetError:
        return
    again = mask_util.decode({"size": [height, width], "counts": text.encode()})
    expected = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T
    assert (again == expected).all()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ("", "sum to 0"),
        ([29], "sum to 29"),
        ([10, 10, 11], "sum to 31"),
        ([-1, 31], "negative"),
        ([30.0], "whole numbers"),
        ([2**70], "whole numbers"),
        ([[], 30], "whole numbers"),
        ([2**62, 2**62, 2**62, 2**62, 30], "sum to 30"),
        ("P", "cut off"),
        ("n", "cut off"),
        ("\u00e9", "characters"),
        ("PPPPPPPPPPP0", "32 bits"),
        ("N0", "negative"),
        (None, "NoneType"),
    ],
)
def test_damage_is_named(counts, said):
    with pytest.raises(DatasetError, match=said):
        rle.runs(counts, 6, 5)
