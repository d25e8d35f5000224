"""Experiments: the same training for every norm, number of images per step and seed.

Each training writes one JSON file. A training that has one is not run again.
"""

import json
import math
import multiprocessing
import os
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gnws_d2.files import atomic_write

REFERENCE_BATCH = 8  # images per step that a reference learning rate is meant for
BATCHES = (1, 2, 4, 8)
NORMS = ("BN", "GN", "GN+WS", "BCN", "BCN+WS")
MOVING_SPEED = 0.1  # of the estimates of BCN; falls with the learning rate


@dataclass(frozen=True)
class Job:
    """One training."""

    experiment: str  # its name
    norm: str  # one of NORMS, or what else the experiment compares
    batch: int  # images per step
    seed: int  # of the initial weights and of the order of the images
    images: int  # how many are seen, a multiple of batch
    reference_lr: float  # learning rate for REFERENCE_BATCH images per step

    @property
    def steps(self) -> int:
        return self.images // self.batch

    @property
    def lr(self) -> float:
        """The learning rate, scaled linearly with the batch."""
        return self.reference_lr * self.batch / REFERENCE_BATCH

    def result_file(self, folder: Path) -> Path:
        norm = self.norm.lower().replace("+", "_")
        rate = f"lr{self.reference_lr:g}-images{self.images}"
        return folder / f"{self.experiment}-{norm}-batch{self.batch}-{rate}-seed{self.seed}.json"


@dataclass(frozen=True)
class Preset:
    """What an experiment compares: all combinations of ``lrs``, ``norms``, ``batches``, ``seeds``.
    A job sees ``images``, or if that is 0 makes ``steps``."""

    images: int = 0
    steps: int = 0
    lrs: Sequence[float] = ()  # reference rates; if empty, each norm has the best found before
    norms: Sequence[str] = NORMS
    batches: Sequence[int] = BATCHES
    seeds: Sequence[int] = (0, 1, 2)

    def jobs(self, experiment: str, best_lrs: Mapping[str, float]) -> list[Job]:
        return [
            Job(experiment, norm, batch, seed, self.images or self.steps * batch, lr)
            for seed in self.seeds
            for norm in self.norms
            for batch in self.batches
            for lr in self.lrs or [best_lrs[norm]]
        ]


# Trains and returns the measurements by name. Raises FloatingPointError if the training diverges.
Train = Callable[[Job], dict[str, Any]]


def run_job(train: Train, folder: Path, job: Job) -> None:
    """Run one job and write its result. A diverged training is one without measurements."""
    start = time.process_time()
    result: dict[str, Any] = {**asdict(job), "diverged": "", "cpu_seconds": 0.0}
    try:
        result |= train(job)
    except FloatingPointError as error:
        result["diverged"] = str(error) or "not finite"
    result["cpu_seconds"] = round(time.process_time() - start, 1)
    with atomic_write(job.result_file(folder)) as unfinished:
        unfinished.write_text(json.dumps(result), encoding="utf-8")


def run_jobs(train: Train, jobs: Sequence[Job], folder: Path, processes: int) -> None:
    """Run the jobs without a result, each in one thread. Errors other than divergence stop it."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not job.result_file(folder).exists()]
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes read it when they import torch
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        results = pool.map(partial(run_job, train, folder), waiting)
        list(tqdm(results, total=len(waiting), unit="job"))


def best_lrs(jobs: Sequence[Job], folder: Path, score: str) -> dict[str, float]:
    """For each norm, the reference rate of the job with the highest score; diverged ones lose."""
    results = [json.loads(job.result_file(folder).read_text(encoding="utf-8")) for job in jobs]
    results.sort(key=lambda result: result.get(score, -math.inf))
    return {result["norm"]: result["reference_lr"] for result in results}


def command(doc: str | None, train: Train, presets: Mapping[str, Preset], score: str = "") -> None:
    """The command line of a module, described by its ``doc``: run the experiments in order. One
    with several learning rates chooses those of the experiments after it, by the ``score`` of its
    results."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/micro_batch"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes")
    args = parser.parse_args()
    chosen: dict[str, float] = {}
    for name, preset in presets.items():
        jobs = preset.jobs(name, chosen)
        run_jobs(train, jobs, args.output, args.jobs)
        if len(preset.lrs) > 1:
            chosen = best_lrs(jobs, args.output, score)
    print(f"Results: {args.output}. Tables and plot: summary.py --results {args.output}")
