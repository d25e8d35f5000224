"""Which images of an evaluation to show: the worst, the best and random ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .matching import Matches


@dataclass(frozen=True)
class ImageResult:
    """How many objects of an image are found and missed, and how many detections are wrong."""

    image_id: int | str
    found: int
    missed: int
    wrong: int

    @property
    def f1(self) -> float:
        return 2 * self.found / (2 * self.found + self.missed + self.wrong)

    @property
    def is_empty(self) -> bool:
        """Nothing is there, and nothing was detected."""
        return not (self.found or self.missed or self.wrong)


def image_results(
    matches: Matches, image_ids: Iterable[int | str], threshold: float
) -> list[ImageResult]:
    """The result of each image with the detections that have a score of at least ``threshold``."""
    is_found = matches.found_score >= threshold  # NaN is not
    is_wrong = ~matches.is_right & (matches.score >= threshold)
    found = Counter(matches.object_image_id[is_found].tolist())
    missed = Counter(matches.object_image_id[~is_found].tolist())
    wrong = Counter(matches.image_id[is_wrong].tolist())
    return [ImageResult(i, found[i], missed[i], wrong[i]) for i in image_ids]


def choose(results: list[ImageResult], number: int, seed: int = 0) -> dict[str, list[ImageResult]]:
    """Up to ``number`` images of each kind, none of them twice.

    The worst have the lowest F1 and, of equals, the most errors; the best the highest F1 and, of
    equals, the most objects.
    """
    rated = [r for r in results if not r.is_empty]
    number_rated = min(number, -(-len(rated) // 2))
    worst = sorted(rated, key=lambda r: (r.f1, -r.missed - r.wrong))
    worst = [r for r in worst if r.f1 < 1][:number_rated]
    best = sorted(rated, key=lambda r: (-r.f1, -r.found))
    best = [r for r in best if r.found and r not in worst][:number_rated]
    rest = [r for r in results if r not in worst and r not in best]
    drawn = random.Random(seed).sample(rest, min(number, len(rest)))
    return {"worst": worst, "best": best, "random": drawn}
