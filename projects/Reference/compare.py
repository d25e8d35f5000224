#!/usr/bin/env python3
"""Trains the demo's detectors from start to end in MMDetection and here, several seeds each.

    python projects/Reference/compare.py --jobs 2      # hours; finished trainings are kept
    python projects/Reference/compare.py --page        # writes the tables and the plot again

Each training writes one JSON file into docs/reference; one that has its file is not run again.
Weights are kept in output/reference, and evaluated by both frameworks.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import page
from recipe import FINE_TUNED, OURS, THEIRS, WINDOW, Job, jobs

from gnws_d2.files import atomic_write

RESULTS = Path(__file__).parents[2] / "docs" / "reference"
WEIGHTS = Path("output/reference")
SIDES = {OURS: "ours", THEIRS: "theirs"}  # modules; the second needs MMDetection


def result_file(job: Job) -> Path:
    return RESULTS / f"{job.name}.json"


def run(job: Job) -> None:
    """Run one training, evaluate it in both frameworks, and write its result."""
    start = time.process_time()
    sides = {name: importlib.import_module(module) for name, module in SIDES.items()}
    folder = (WEIGHTS / job.name).absolute()
    shutil.rmtree(folder, ignore_errors=True)  # of a training that was stopped
    folder.mkdir(parents=True)
    base = folder.with_name(f"{FINE_TUNED.name}.pth") if job.task == "fine-tuning" else None
    losses, file = sides[job.side].train(job, base, folder)
    weights = folder.with_suffix(".pth")
    file.replace(weights)
    minutes = (time.process_time() - start) / 60
    result = {
        **vars(job),
        "AP": {name: side.evaluate(job, weights, folder) for name, side in sides.items()},
        "minutes": round(minutes, 1),  # of the processor, for the training
        "losses": {name: averages(values) for name, values in losses.items()},
    }
    with atomic_write(result_file(job)) as partial:
        partial.write_text(json.dumps(result), encoding="utf-8")
    shutil.rmtree(folder)


def averages(values: list[float]) -> list[float]:
    parts = [values[i : i + WINDOW] for i in range(0, len(values), WINDOW)]
    return [round(sum(part) / len(part), 4) for part in parts]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes of one thread")
    parser.add_argument("--only", default="", metavar="TEXT", help="trainings with this name")
    parser.add_argument("--page", action="store_true", help="write docs/reference.md from results")
    args = parser.parse_args()
    if args.page:
        page.write(RESULTS)
        return
    RESULTS.mkdir(exist_ok=True)
    named = [job for job in jobs() if args.only in job.name]
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes read it when they import torch
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, max_tasks_per_child=1) as pool:
        running = [pool.submit(run, job) for job in named if not result_file(job).exists()]
        for done in as_completed(running):
            done.result()


if __name__ == "__main__":
    main()
