"""Training that continues exactly where it stopped.

Detectron2 restores weights, optimizer and schedule, but restarts the data and the random numbers.
Here everything random is drawn from (seed, process, position): the order of the images, the
augmentation of each, and what a step samples. A resumed run then sees what an uninterrupted one
sees, with any number of data workers.

A micro-batch of gradient accumulation gets the images and random numbers of the process that it
stands for, see :func:`process_of`: accumulating runs compute what more processes compute.
"""

import copy
import functools
import itertools
import logging
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import DataLoader

from ..checkpoint import Checkpointer
from ..data import Mapper, NamingMapper, SharedRecords, check_mapped, load_train_dataset
from ..errors import CheckpointError, ConfigError, shorten

logger = logging.getLogger(__name__)

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")


def process_of(micro_batch: int) -> int:
    """The rank of the process that a micro-batch of this process stands for, among as many
    processes as there are micro-batches in all."""
    return comm.get_rank() + micro_batch * comm.get_world_size()


class IterationSeed(HookBase):
    """Seeds the random numbers of every micro-batch; its seed is saved and resumed.

    Args:
        seed: of the run; negative (Detectron2's default of SEED) draws one.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed if seed >= 0 else comm.shared_random_seed()

    def before_step(self) -> None:
        self.before_micro_batch(0)

    def before_micro_batch(self, index: int) -> None:
        seed_all_rng(_hash(self.seed, process_of(index), self.trainer.iter))

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed = state["seed"]


class ResumableLoader:
    """Detectron2's train loader of a config, able to start at any iteration.

    Iterating yields this process's batches, lists of dicts of the dataset mapper, without end. A
    batch is the concatenation of its SOLVER.ACCUMULATION_STEPS micro-batches.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset: Sequence[dict],
        mapper: Callable[[dict], dict],
        build_sampler: Callable[[], Iterable[int]] | None = None,
        total_batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        seed: int = -1,
        accumulation_steps: int = 1,
    ) -> None:
        """``ResumableLoader(cfg)``, or the arguments of ``build_detection_train_loader``.

        Args:
            build_sampler: makes its sampler, by default a ``TrainingSampler``; called for each
                start, because some samplers draw a seed when they are built.

        Raises:
            ConfigError: the batch does not divide among processes and micro-batches.
        """
        is_shared = isinstance(dataset, SharedRecords)
        records = DatasetFromList(dataset, copy=False, serialize=not is_shared)
        self.dataset = _SeededDataset(records, NamingMapper(mapper))
        # Images of one batch are all wide, or all not. They are grouped before loading; Detectron2
        # groups them after it, where nothing can tell which images an iteration will get.
        self._groups = [aspect_ratio_grouping and d["width"] > d["height"] for d in dataset]
        self._build_sampler = build_sampler or functools.partial(TrainingSampler, len(dataset))
        self._processes = [process_of(i) for i in range(accumulation_steps)]
        count = comm.get_world_size() * accumulation_steps
        self._batch_size, rest = divmod(total_batch_size, count)
        if rest:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH (total_batch_size, of a LazyConfig) is {total_batch_size}, "
                f"which does not divide among {comm.get_world_size()} processes with "
                f"SOLVER.ACCUMULATION_STEPS {accumulation_steps}. Choose a multiple of {count}."
            )
        self._num_workers = num_workers
        self.seek(seed=max(seed, 0), iteration=0)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: Any = None) -> dict[str, Any]:
        cfg, mapper = cfg.clone(), Mapper(cfg, is_train=True)
        dataset = load_train_dataset(cfg) if dataset is None else dataset
        _check_sampler(cfg, dataset)
        # The other samplers count the images; keeping them would take as much memory again.
        counts_objects = cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
        sampled = dataset if counts_objects else range(len(dataset))
        build = functools.partial(build_detection_train_loader.from_config, cfg, mapper)
        return {
            "dataset": dataset,
            "mapper": mapper,
            "build_sampler": lambda: build(dataset=sampled)["sampler"],
            "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
            "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            "num_workers": cfg.DATALOADER.NUM_WORKERS,
            "seed": cfg.SEED,
            "accumulation_steps": cfg.SOLVER.ACCUMULATION_STEPS,
        }

    def seek(self, seed: int, iteration: int) -> None:
        """Let the next ``iter()`` start at the batch of ``iteration``, augmented from ``seed``."""
        self.dataset.seed, self._iteration = seed, iteration

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        with _random_numbers(self.dataset.seed):
            sampler = self._build_sampler()
        order = batch_order(sampler, self._groups, self._batch_size, self._processes)
        loader: DataLoader = DataLoader(
            self.dataset,
            batch_sampler=itertools.islice(order, self._iteration, None),
            num_workers=self._num_workers,
            collate_fn=list,
            worker_init_fn=start_worker,
            # A loader without a generator takes a number from those of the training step.
            generator=torch.Generator(),
        )
        batches = iter(loader)
        try:
            yield from batches
        finally:
            # Now: the traceback of an error keeps them, and so their workers, until the very end.
            getattr(batches, "_shutdown_workers", lambda: None)()


def _check_sampler(cfg: CfgNode, dataset: Sequence[dict]) -> None:
    """Refuse what Detectron2 finds only when it builds the sampler, at the first batch."""
    name, ratio = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 1.0)
    if name not in SAMPLERS:
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {shorten(name)}. Set it to one of {', '.join(SAMPLERS)}."
        )
    if "Subset" in name and not (ratio <= 1 and int(len(dataset) * ratio) > 0):
        raise ConfigError(
            f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, of {len(dataset)} images. Set it so that "
            "an image is left, to 1.0 at most."
        )
    if "Factor" in name and not all("annotations" in record for record in dataset):
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {name}, but images of DATASETS.TRAIN have no list of "
            "annotations to count. Choose TrainingSampler."
        )


def batch_order(
    sampler: Iterable[int], groups: Sequence[object], batch_size: int, processes: Sequence[int]
) -> Iterator[list[tuple[int, int, int]]]:
    """Deal a sampler's indices into micro-batches, one for each of ``processes`` an iteration.

    Args:
        sampler: yields the same indices each time that it is iterated.
        groups: of each index. A micro-batch holds indices of one group.
        batch_size: of a micro-batch.

    Yields:
        Of each iteration a list of (process, position, index). The position counts that process's
        images from the first iteration.
    """

    def grouped(indices: Iterable[int]) -> Iterator[list[int]]:
        open_batches: dict[object, list[int]] = {}
        for index in indices:
            batch = open_batches.setdefault(groups[index], [])
            batch.append(index)
            if len(batch) == batch_size:
                yield open_batches.pop(groups[index])

    # A sampler deals indices to processes in turn, and so this process's to its micro-batches.
    count = len(processes)
    streams = [grouped(itertools.islice(sampler, i, None, count)) for i in range(count)]
    for iteration, batches in enumerate(zip(*streams, strict=False)):
        yield [
            (process, position, index)
            for process, batch in zip(processes, batches, strict=True)
            for position, index in enumerate(batch, iteration * batch_size)
        ]


class _SeededDataset(MapDataset):
    """Maps the image of (process, position, index) with the random numbers of the first two."""

    seed: int

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        process, position, index = key
        with _random_numbers(_hash(self.seed, process, position)):
            return super().__getitem__(index)


def start_worker(worker_id: int) -> None:
    """Prepare a worker of a data loader: for ``worker_init_fn``.

    It may get the signals of its process as well. It serves the iteration that is to be finished,
    and ends when its process is killed.
    """
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(10))


def map_one(loader: Iterable) -> None:
    """Map one image before training starts, of the first 100 the one with the most annotated, so
    that what its mapper lacks or misreads is known at once. Of loaders that neither this package
    nor Detectron2 builds, none is mapped."""
    dataset: Any = loader
    while not isinstance(dataset, MapDataset) and dataset is not None:
        dataset = getattr(dataset, "dataset", None)
    if dataset is None:
        return
    images, mapper = dataset.__getnewargs__()  # what it is pickled by
    records = [images[i] for i in range(min(len(images), 100))]
    if records := [record for record in records if isinstance(record, dict)]:
        with _random_numbers(0):
            NamingMapper(mapper)(copy.deepcopy(max(records, key=lambda record: len(str(record)))))


def checked_batches(model: Any, loader: Iterable | None = None) -> AbstractContextManager:
    """Look at the images that ``model`` gets, see :func:`check_mapped`, unless they come from a
    loader that does so itself."""
    if isinstance(loader, ResumableLoader) or not isinstance(model, nn.Module):
        return nullcontext()
    return model.register_forward_pre_hook(_check_batch)


def _check_batch(model: nn.Module, arguments: Sequence[Any]) -> None:
    for mapped in arguments[0] if arguments and isinstance(arguments[0], list) else ():
        check_mapped(mapped)


def seek_data(loader: Iterable, seed: int, iteration: int) -> None:
    """Let a train loader start at ``iteration``, or say that it cannot."""
    if isinstance(loader, ResumableLoader):
        loader.seek(seed, iteration)
        return
    logger.log(
        logging.WARNING if iteration else logging.INFO,
        "The train loader is a %s, which cannot start in the middle: a resumed run continues "
        "weights, optimizer and schedule exactly, but reads the data from the start.",
        type(loader).__name__,
    )


def save_final(checkpointer: Checkpointer, start: int, max_iter: int) -> None:
    """Save model_final.pth where a run resumes at its end from another checkpoint: it was killed
    between its last two, which are of one state.

    Raises:
        CheckpointError: the checkpoint is of a longer training.
    """
    resumed = checkpointer.resumed_from
    if resumed and start > max_iter:
        raise CheckpointError(
            f"Cannot resume: {resumed} has finished {start} iterations, and SOLVER.MAX_ITER "
            f"(from --epochs; train.max_iter, of a LazyConfig) is {max_iter}. Train for longer, "
            "or start again without --resume, in another OUTPUT_DIR."
        )
    if start >= max_iter and resumed and resumed.name != "model_final.pth":
        checkpointer.save("model_final", iteration=start - 1)


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
