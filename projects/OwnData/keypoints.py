"""Names of keypoints: which change places in a mirrored image, and which are connected."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

LIMB = (255, 128, 0)  # RGB
SIDES = {"left": "right", "l": "r", "lt": "rt", "lft": "rgt"}
_OTHER = SIDES | {right: left for left, right in SIDES.items()}
# Where a word begins: at a capital after a small letter, at the last of several, at a digit.
_BORDERS = r"(?<=[^\W\dA-Z_])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\D)(?=\d)|(?<=\d)(?=\D)"


def flip_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs (left, right) of names that differ in their side alone, such as ``left_eye`` and
    ``right_eye``, LeftEye, eyeL, "L-eye" or "lefteye". Of small letters run together, as in "leye",
    the first or last counts where it makes two pairs or more."""
    by_words = {tuple(_words(name)): name for name in names}
    pairs = [
        (name, by_words[other])
        for words, name in by_words.items()
        if (other := tuple(_OTHER.get(word, word) for word in words)) in by_words
        and next((word for word in words if word in _OTHER), "") in SIDES
    ]
    by_letters = {name.lower(): name for name in names if name not in sum(pairs, ())}
    run_together = [
        (name, by_letters[other])
        for letters, name in by_letters.items()
        for other in (re.sub("^l", "r", letters), re.sub("l$", "r", letters))
        if other != letters and other in by_letters
    ]
    return pairs + (run_together if len(run_together) > 1 else [])


def keypoint_names(category: Mapping[str, Any]) -> list[str]:
    """The names of a category's keypoints; [] where it has none."""
    names = category.get("keypoints")
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []


def limbs(category: Mapping[str, Any]) -> list[tuple[str, str, tuple[int, int, int]]]:
    """The lines of a category's ``skeleton``, pairs of keypoints counted from 1, as Detectron2's
    ``keypoint_connection_rules``: two names and a color. Without what is no such pair."""
    names, listed = dict(enumerate(keypoint_names(category), 1)), category.get("skeleton")
    pairs = [p for p in listed if isinstance(p, list)] if isinstance(listed, list) else []
    ends = [[names.get(n) for n in pair if isinstance(n, int)] for pair in pairs]
    return [(first, second, LIMB) for first, second in (e for e in ends if len(e) == 2 and all(e))]


def has_side(name: str) -> bool:
    """Whether a name has a word for a side."""
    return any(word in _OTHER for word in _words(name))


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(left|right)", r" \1 ", re.sub(_BORDERS, " ", name).lower())
    return re.findall(r"[^\W_]+", spaced)
