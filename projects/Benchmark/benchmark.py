#!/usr/bin/env python3
"""What GN+WS costs: paired times and memory against the same model with GN alone.

    python projects/Benchmark/benchmark.py --preset cpu --output docs/benchmarks
    python projects/Benchmark/benchmark.py --level backbone --models mask_rcnn_R_50_FPN --mode infer

It writes JSON, from which report.py makes the tables. All variants (variants.py) have the same
weights, get the same input and run in one process in turn, in a random order that the next round
reverses (A/B/B/A). A ratio is the median over the rounds of a variant's time divided by that of GN
in the same round, with a 95% bootstrap interval; "GN again" is the control, whose difference from 1
is noise. Every variant is compared with float64 first; an inaccurate one ends the run.
"""

import datetime
import itertools
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accuracy import prepare
from measure import memory, paired_times, ratio
from results import Row, machine, write
from tqdm import tqdm
from variants import ARCHITECTURES, BASE, CONTROL, VARIANTS, Case

NAMES = [variant.name for variant in VARIANTS]
LEVELS = ["backbone", "model"]
_MAIN = "--variants FrozenBN 'GN + plain WS' GN+WS 'GN+WS, folded'"
_R50 = "--models mask_rcnn_R_50_FPN"
# Each stands for these command lines.
PRESETS = {
    # R-50 in depth, and all models with the variants that matter most: 1 to 2 hours on two cores
    "cpu": [
        f"--level backbone {_R50} --size 512 512 --rounds 20",
        f"--level backbone {_R50} {_MAIN} --rounds 16",
        "--level model --variants GN+WS 'GN+WS, folded' --size 512 512 --rounds 5",
    ],
    # everything; hours
    "gpu": ["--precision fp32 bf16 --rounds 30"],
}


def main(words: Sequence[str]) -> Path:
    """Run, and return the file of results."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--level", nargs="+", choices=LEVELS, default=LEVELS)
    add("--models", nargs="+", default=list(ARCHITECTURES), help="or names or files of configs")
    add("--size", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"))
    add("--mode", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the config")
    add("--variants", nargs="+", choices=NAMES, metavar="NAME", default=NAMES, help=str(NAMES))
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=int, default=16)
    add("--preset", choices=PRESETS, help="in place of all of the above but --device")
    add("--output", type=Path, default=Path("output/benchmark"), metavar="DIR")
    args = parser.parse_args(words)
    lines = [shlex.split(line) for line in PRESETS.get(args.preset, [])]
    runs = [parser.parse_args([*line, "--device", args.device]) for line in lines] or [args]
    file = args.output / f"{args.preset or 'custom'}-{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.allow_tf32 = False
    results: dict[str, Any] = {**machine(args.device), "command": shlex.join(words), "rows": []}
    todo = [
        (Case(level, model, tuple(run.size), mode, precision, run.device, run.opts), run)
        for run in runs
        for level, model, mode, precision in itertools.product(
            run.level, run.models, run.mode, run.precision
        )
    ]
    for case, run in tqdm(todo, desc="cases"):
        results["rows"] += rows(case, {*run.variants, BASE, CONTROL}, run.rounds)
        write(file, results)  # after each case: a long run may be interrupted
    print(file)
    return file


def rows(case: Case, names: set[str], rounds: int) -> Iterator[Row]:
    """The results of a case: one row for each variant."""
    chosen = [v for v in VARIANTS if v.name in names and not (v.folded and case.training)]
    subjects = prepare(case, chosen)
    times = paired_times({name: step for name, (step, *_) in subjects.items()}, rounds)
    for name, (step, model, errors) in subjects.items():
        yield {
            **asdict(case),
            **{"variant": name, "base": BASE},
            "seconds": [float(f"{t:.4g}") for t in times[name]],
            "ratio": [round(r, 4) for r in ratio(times[name], times[BASE])],
            "memory": memory(step, model, case.device),
            "errors": [None if e is None else float(f"{e:.1e}") for e in errors],
        }


if __name__ == "__main__":
    main(sys.argv[1:])
