"""Runs the jobs of an experiment, several at a time, and only those that have no result yet.

A result is one JSON file, which appears whole or not at all. Start a stopped run again to continue
it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from experiment import Job, Preset
from tqdm import tqdm

from gnws_d2.files import atomic_write

# Trains, and returns what it measured, as rows of a CSV file; raises FloatingPointError where it
# diverges.
Train = Callable[[Job], list[dict[str, Any]]]


def read_result(file: Path) -> dict[str, Any] | None:
    """The result in ``file``; None if it is missing, or cut off by a full disk."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def missing(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs without a result.

    Raises:
        ValueError: ``folder`` has results of jobs of these names that were trained otherwise.
    """
    without = []
    for job in jobs:
        result = read_result(folder / f"{job.name}.json")
        if result is None:
            without.append(job)
        elif result["job"] != asdict(job):
            raise ValueError(
                f"{folder / job.name}.json is the result of {result['job']}, not of {asdict(job)}. "
                "Choose another --output, or remove the old results."
            )
    return without


def run_job(train: Train, job: Job, folder: Path) -> str:
    """Run one job and write its result; one that diverged is a result as well.

    Returns:
        "diverged", or "".
    """
    cpu, wall = time.process_time(), time.time()
    diverged, rows = "", []
    try:
        rows = train(job)
    except FloatingPointError as error:
        diverged = str(error) or "not finite"
    result = {
        "job": asdict(job),
        "diverged": diverged,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.time() - wall, 1),
        "rows": rows,
    }
    with atomic_write(folder / f"{job.name}.json") as partial:
        partial.write_text(json.dumps(result), encoding="utf-8")
    return "diverged" if diverged else ""


def run_jobs(train: Train, jobs: Sequence[Job], folder: Path, processes: int) -> list[str]:
    """Run the jobs that have no result, in processes of one torch thread each.

    Returns:
        For each job that failed otherwise than by diverging, its name and error; it has no result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = missing(jobs, folder)
    failures: list[str] = []
    if not waiting:
        return failures
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes when they import torch
    pool = ProcessPoolExecutor(
        min(processes, len(waiting)),
        multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    progress = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="job", smoothing=0)
    with progress, pool:
        futures = {pool.submit(run_job, train, job, folder): job for job in waiting}
        for future in as_completed(futures):
            name = futures[future].name
            if error := future.exception():
                failures.append(f"{name}: {type(error).__name__}: {error}")
                progress.write(failures[-1])
            elif future.result():
                progress.write(f"{name} diverged")
            progress.update()
    return failures


def best_lrs(jobs: Sequence[Job], folder: Path, score: str) -> dict[str, float]:
    """For each norm the reference learning rate with the highest mean score over finished jobs;
    one that diverged has the lowest."""
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for job in jobs:
        result = json.loads((folder / f"{job.name}.json").read_text(encoding="utf-8"))
        scores = [row[score] for row in result["rows"]]
        found[job.norm, job.reference_lr] += scores or [-math.inf]
    return dict(sorted(found, key=lambda key: fmean(found[key])))  # of each norm, the last stays


def command(
    doc: str | None,
    train: Train,
    experiments: Mapping[str, Preset],
    score: str = "",
) -> None:
    """The command line of an experiment.

    Args:
        doc: its description.
        train: runs one job.
        experiments: by name. One with an ``lr_grid`` chooses the learning rate of each norm in
            those behind it.
        score: of a result, the highest of which chooses.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/micro_batch"))
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes, one thread each"
    )
    args = parser.parse_args()
    failures, lrs = [], None
    for name, preset in experiments.items():
        jobs = preset.jobs(name, lrs)
        failures += run_jobs(train, jobs, args.output, args.jobs)
        if preset.lr_grid:
            if failures:
                break
            lrs = best_lrs(jobs, args.output, score)
    print(f"Results: {args.output}. Tables and plots: summary.py --results {args.output}")
    if failures:
        sys.exit("Without a result, and tried again by the next run:\n" + "\n".join(failures))
