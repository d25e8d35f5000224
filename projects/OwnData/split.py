"""A fixed split of one annotation file into a training and a validation part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby

VALIDATION_SHARE = 0.2


def split_names(file_names: Sequence[str], part: str) -> set[str]:
    """Those of ``file_names`` in ``part``, "train" or "val" (a fifth, at least one).

    The names are ordered by their SHA-256, and validation takes the first: the order of the file
    does not matter, and a new image moves at most a few others. Roboflow's augmented copies of an
    image, ``NAME.rf.HASH.jpg``, stay together.
    """
    ordered = sorted(set(file_names), key=lambda name: (_order(name), name))
    wanted = max(1, round(VALIDATION_SHARE * len(ordered)))
    validation: set[str] = set()
    for _, group in groupby(ordered, _order):
        if len(validation) >= wanted:
            break
        validation.update(group)
    return validation if part == "val" else set(ordered) - validation


def _order(name: str) -> str:
    stem = name.replace("\\", "/").partition(".rf.")[0]
    return hashlib.sha256(stem.encode(errors="surrogatepass")).hexdigest()
