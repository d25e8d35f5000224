"""An experiment: the same training for every norm, number of images per step and seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

REFERENCE_BATCH = 8  # images per step that the learning rate of a preset is meant for
BATCHES = (1, 2, 4, 8)
NORMS = ("BN", "FrozenBN", "GN", "GN+WS", "BCN", "BCN+WS")
MOVING_SPEED = 0.1  # of the estimates of BCN; falls with the learning rate


@dataclass(frozen=True)
class Job:
    """One training. All jobs of an experiment see the same number of images.

    Attributes:
        experiment: its name, the first word of the file of its result.
        norm: of NORMS.
        batch: images per step.
        seed: of initial weights and of the order of the images.
        images: seen in all, a multiple of every batch.
        reference_lr: learning rate of a batch of REFERENCE_BATCH images.
    """

    experiment: str
    norm: str
    batch: int
    seed: int
    images: int
    reference_lr: float

    def __post_init__(self) -> None:
        if self.images % self.batch:
            raise ValueError(
                f"{self.images} images are not a whole number of steps of {self.batch} images. "
                f"Choose a multiple of {self.batch}."
            )

    @property
    def name(self) -> str:
        norm = self.norm.lower().replace("+", "_")
        return f"{self.experiment}-{norm}-batch{self.batch}-seed{self.seed}"

    @property
    def steps(self) -> int:
        return self.images // self.batch

    @property
    def lr(self) -> float:
        """Scaled linearly with the batch."""
        return self.reference_lr * self.batch / REFERENCE_BATCH

    @property
    def standardized(self) -> bool:
        return self.norm.endswith("+WS")

    @property
    def norm_layer(self) -> str:
        return self.norm.removesuffix("+WS")


@dataclass(frozen=True)
class Preset:
    """How much of an experiment is done; attributes as those of Job, several for each."""

    images: int
    reference_lr: float
    seeds: int
    norms: Sequence[str] = NORMS
    batches: Sequence[int] = BATCHES

    def jobs(self, experiment: str) -> list[Job]:
        """All jobs; whole seeds one after the other, so that a stopped run has whole tables."""
        return [
            Job(experiment, norm, batch, seed, self.images, self.reference_lr)
            for seed in range(self.seeds)
            for norm in self.norms
            for batch in self.batches
        ]


def loss_curve(losses: Sequence[float], points: int) -> list[float]:
    """The mean losses of ``points`` parts of a training that are equally long, or differ by one
    step where it does not divide; a training that is broken off has fewer."""
    edges = [round(i * len(losses) / points) for i in range(points + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges) if b > a]
