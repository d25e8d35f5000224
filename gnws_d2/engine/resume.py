"""Training that continues exactly where it was broken off.

Detectron2 restores weights, optimizer and schedule, but restarts the data and the random numbers.
Here everything random is drawn from (seed, process, position): the order of the images, the
augmentation of each, and what a step samples. A resumed run then sees what an uninterrupted one
sees, with any number of data workers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.errors import NamingMapper, dataset_errors


class IterationSeed(HookBase):
    """Seeds the random numbers of every training step; its seed is saved and resumed.

    Args:
        seed: of the run; negative (Detectron2's default of SEED) draws one.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed if seed >= 0 else comm.shared_random_seed()

    def before_step(self) -> None:
        seed = _hash(self.seed, comm.get_rank(), self.trainer.iter)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed = state["seed"]


class ResumableLoader:
    """The batches of Detectron2's train loader of a config, from any iteration on.

    Iterating yields this process's batches, lists of dicts of the dataset mapper, without end;
    ``last_batch`` is the latest one.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Depending on Detectron2's version, a sampler takes cfg.SEED or draws a seed from NumPy.
        with dataset_errors(cfg, cfg.DATASETS.TRAIN), _random_numbers(max(cfg.SEED, 0)):
            self._options = build_detection_train_loader.from_config(cfg)
        self._batch_size = self._options["total_batch_size"] // comm.get_world_size()
        self.seek(seed=max(cfg.SEED, 0), iteration=0)

    def seek(self, seed: int, iteration: int) -> None:
        """Let the next ``iter()`` start at the batch of ``iteration``, augmented from ``seed``."""
        self._seed, self._iteration = seed, iteration

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        dicts = self._options["dataset"]
        # Images are grouped before loading: Detectron2 groups them after it, where no one can tell
        # which images a given iteration will get.
        by_shape = self._options["aspect_ratio_grouping"]
        loader = DataLoader(
            _SeededDataset(dicts, self._options["mapper"], self._seed),
            batch_sampler=_BatchOrder(
                self._options["sampler"],
                groups=[by_shape and d["width"] > d["height"] for d in dicts],
                batch_size=self._batch_size,
                start=self._iteration,
            ),
            num_workers=self._options["num_workers"],
            collate_fn=list,
            # A loader without a generator takes a number from those of the training step.
            generator=torch.Generator(),
        )
        for self.last_batch in loader:
            yield self.last_batch


class _BatchOrder(Sampler):
    """Groups a sampler's endless stream of indices into batches of one group each.

    Yields lists of (position, index): the position counts this process's images from the first
    iteration.
    """

    def __init__(self, sampler: Sampler, groups: list[bool], batch_size: int, start: int) -> None:
        self._sampler = sampler
        self._groups = groups
        self._batch_size = batch_size
        self._start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        positions = itertools.count(self._start * self._batch_size)
        for batch in itertools.islice(self._batches(), self._start, None):
            yield [(next(positions), index) for index in batch]

    def _batches(self) -> Iterator[list[int]]:
        open_batches: dict[bool, list[int]] = {False: [], True: []}
        for index in self._sampler:
            batch = open_batches[self._groups[index]]
            batch.append(index)
            if len(batch) == self._batch_size:
                yield batch
                open_batches[self._groups[index]] = []


class _SeededDataset(Dataset):
    """Maps the image of (position, index) with the random numbers of that position."""

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], dict], seed: int) -> None:
        self._mapped = MapDataset(DatasetFromList(dicts, copy=False), NamingMapper(mapper))
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        with _random_numbers(_hash(self._seed, comm.get_rank(), position)):
            return self._mapped[index]


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators, and restore their states at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _hash(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])
