"""An experiment: the same training for every norm, number of images per step and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REFERENCE_BATCH = 8  # images per step that the learning rate of a preset is meant for
BATCHES = (1, 2, 4, 8)
NORMS = ("BN", "GN", "GN+WS", "BCN", "BCN+WS")
MOVING_SPEED = 0.1  # of the estimates of BCN; falls with the learning rate


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        experiment: its name, the first word of the file of its result.
        norm: of NORMS, or what else the experiment compares.
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
        lr = f"lr{self.reference_lr:g}"
        return f"{self.experiment}-{norm}-batch{self.batch}-{lr}-seed{self.seed}"

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
    """How much of an experiment is done.

    Attributes:
        seeds: how many.
        images, reference_lr, norms, batches: as those of Job, several of the latter two.
        first_seed: the smallest.
        lr_grid: reference learning rates, each of which is tried, to choose one for each norm.
        steps: of each job, whatever its batch, in place of ``images``.
    """

    seeds: int
    images: int = 0
    reference_lr: float = 0.0
    norms: Sequence[str] = NORMS
    batches: Sequence[int] = BATCHES
    first_seed: int = 0
    lr_grid: Sequence[float] = ()
    steps: int = 0

    def jobs(self, experiment: str, lrs: Mapping[str, float] | None = None) -> list[Job]:
        """All jobs; whole seeds one after the other, so that a stopped run has whole tables.

        Args:
            lrs: the reference learning rate chosen for each norm.
        """
        return [
            Job(experiment, norm, batch, seed, self.steps * batch or self.images, lr)
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for norm in self.norms
            for batch in self.batches
            for lr in self.lr_grid or [lrs[norm] if lrs else self.reference_lr]
        ]
