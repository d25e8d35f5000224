"""The scanned digits that the images are made of, divided between training and validation."""

from typing import NamedTuple

import numpy as np

from gnws_d2.errors import GnwsError

CLASSES = tuple("0123456789")
SPLITS = ("train", "val")
TRAIN_SHARE = 0.8
SPLIT_SEED = 1797


class Scans(NamedTuple):
    """Scans of one split."""

    ink: np.ndarray  # (N, 8, 8) float32, 0 (paper) to 1 (full ink)
    labels: np.ndarray  # (N,) int, the digit that is written
    ids: np.ndarray  # (N,) int, the positions in scikit-learn's load_digits


def load_scans(split: str) -> Scans:
    """Load the scans of a split ("train" or "val").

    Raises:
        GnwsError: scikit-learn, which carries the scans, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise GnwsError(
            "Digits is made from scans that come with scikit-learn, which cannot be imported: "
            'pip install "gnws_d2[demo]"'
        ) from error
    digits = load_digits()
    ids = split_ids(digits.target, split)
    # The scans count ink in 17 steps, 0 to 16.
    return Scans((digits.images[ids] / 16).astype(np.float32), digits.target[ids], ids)


def split_ids(labels: np.ndarray, split: str) -> np.ndarray:
    """Choose the scans of a split by their ``labels``, (N,) int: the same share of each class, and
    no scan in both splits. Returns sorted positions in ``labels``."""
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for label in range(len(CLASSES)):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        cut = round(TRAIN_SHARE * len(shuffled))
        chosen.append(shuffled[:cut] if split == "train" else shuffled[cut:])
    return np.sort(np.concatenate(chosen))
