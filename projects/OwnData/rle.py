"""Decode and validate COCO's run-length encoded masks (RLE).

The C code of pycocotools does not validate counts: where they are too short, pixels stay
uninitialized; where they are too long, it writes past the mask.
"""

from typing import Any

import numpy as np

from gnws_d2.errors import DatasetError

MOST_DIGITS = 7  # of a count: 5 bits each, for at most 32 bits


def runs(counts: Any, height: int, width: int) -> np.ndarray:
    """The lengths of the runs of a mask, column by column. The first is a run of zeros.

    Args:
        counts: as in a COCO file: a list of lengths, or a compressed string of 6-bit digits from
            "0", the lowest first: 5 bits of the number, and one that says whether another digit
            follows. From the fourth run on, a number is the difference to the run two before. See
            ``rleFrString`` in pycocotools' maskApi.c.

    Returns:
        int64, with the sum ``height * width``.

    Raises:
        DatasetError: ``counts`` do not describe a mask of this size. The message is a clause.
    """
    if isinstance(counts, (str, bytes)):
        lengths = _decompress(counts)
    elif isinstance(counts, list):
        if not all(type(count) is int and abs(count) < 1 << 63 for count in counts):
            raise DatasetError("its counts are not all whole numbers")
        lengths = np.array(counts, np.int64)
    else:
        raise DatasetError(f"its counts are {type(counts).__name__}, not a list or string")
    if (lengths < 0).any():
        raise DatasetError("a count is negative")
    # Also in float64, because the sum in int64 could wrap around.
    total, pixels = lengths.sum(), height * width
    if total != pixels or lengths.sum(dtype=np.float64) > 2 * pixels:
        raise DatasetError(f"its counts sum to {total}, not to {height} x {width} = {pixels}")
    return lengths


def bounds(lengths: np.ndarray, height: int) -> tuple[int, int, int, int] | None:
    """The box (x, y, width, height) around the ones of a mask; None if it has no ones.

    Args:
        lengths: see :func:`runs`.
    """
    ends = np.cumsum(lengths)
    starts, last = (ends - lengths)[1::2], ends[1::2] - 1
    starts, last = starts[last >= starts], last[last >= starts]
    if not len(starts):
        return None
    left, right = int(starts[0]) // height, int(last[-1]) // height
    if (starts // height < last // height).any():
        # A run that crosses columns has ones in the last row and in the first.
        return left, 0, right - left + 1, height
    top, bottom = int((starts % height).min()), int((last % height).max())
    return left, top, right - left + 1, bottom - top + 1


def _decompress(counts: str | bytes) -> np.ndarray:
    # Bytes that are not ASCII are no digits either.
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 63)).any():
        raise DatasetError("its counts have characters that no mask has")
    if not len(digits):
        return digits
    is_last = digits & 0x20 == 0
    if not is_last[-1]:
        raise DatasetError("its counts are cut off")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts >= MOST_DIGITS).any():
        raise DatasetError("a count has more than 32 bits")
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((digits & 0x1F) << (5 * place), starts)
    # The highest bit is the sign.
    values -= np.where(digits[ends] & 0x10, 1 << (5 * (ends - starts + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
