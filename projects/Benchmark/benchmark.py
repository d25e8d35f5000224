#!/usr/bin/env python3
"""What GN+WS costs: paired times, memory and launches against the same model with GN alone.

    python projects/Benchmark/benchmark.py --preset cpu
    python projects/Benchmark/benchmark.py --level backbone --models mask_rcnn_R_50_FPN --mode infer

It writes JSON, which report.py adds to docs/benchmarks.md. All variants (variants.py) have the same
weights, get the same input and run in one process in turn, in a random order that the next round
reverses (A/B/B/A). A ratio is the median over the rounds of a variant's time divided by that of GN
in the same round, with a 95% bootstrap interval; "GN again" is the control, whose difference from 1
is noise. Every variant is compared with float64 first; an inaccurate one ends the run.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kernels
import torch
from accuracy import Errors, Reference, check
from case import ARCHITECTURES, Case
from measure import Step, launches, memory, paired_times
from results import Row, dump, machine, make_row
from torch import nn
from tqdm import tqdm
from variants import BASE, CONTROL, OURS, VARIANTS, Variant, build, build_reference, initial_state
from workloads import workload

from gnws_d2.files import atomic_write

NAMES = [variant.name for variant in VARIANTS]
LEVELS = ["kernel", "backbone", "model"]
_UNCOMPILED = f"--variants {shlex.join(n for n in NAMES if n != f'{OURS}, compiled')}"
_MAIN = "--variants FrozenBN 'GN + plain WS' GN+WS 'GN+WS, folded'"
_R50 = "--models mask_rcnn_R_50_FPN"
_SMOKE = "--models Digits/mask_rcnn_R_18_FPN_gn_ws.yaml --size 64 96 --rounds 2"
_GPU = (
    "--size 800 1333 --precision fp32 tf32 bf16 --memory-format nchw channels_last --rounds 30"
    " --level kernel backbone model"
)
# Each stands for these command lines.
PRESETS = {
    # R-50 in depth, and all models with the variants that matter most: 1 to 2 hours on two cores
    "cpu": [
        f"--level kernel {_R50} --rounds 6",
        f"--level backbone {_R50} {_UNCOMPILED} --size 512 512 --rounds 20",
        f"--level backbone {_R50} {_MAIN} --rounds 16",
        "--level model --variants GN+WS 'GN+WS, folded' --size 512 512 --rounds 5",
    ],
    # everything; hours
    "gpu": [f"{_GPU} --mode train --batch 1 2", f"{_GPU} --mode infer"],
    # seconds, to try the command; its numbers mean nothing
    "smoke": [f"--level kernel {_SMOKE}", f"--level backbone model {_SMOKE} {_UNCOMPILED}"],
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--level", nargs="+", choices=LEVELS, default=LEVELS)
    add("--models", nargs="+", default=list(ARCHITECTURES), help="or names or files of configs")
    add("--size", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"))
    add("--batch", type=int, nargs="+", default=[1])
    add("--mode", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    add("--precision", nargs="+", choices=["fp32", "tf32", "bf16"], default=["fp32"])
    add("--memory-format", nargs="+", choices=["nchw", "channels_last"], default=["nchw"])
    add("--variants", nargs="+", choices=NAMES, metavar="NAME", default=NAMES, help=str(NAMES))
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=int, default=16)
    add("--preset", choices=PRESETS, help="in place of all of the above but --device")
    add("--output", type=Path, default=Path("output/benchmark"), metavar="DIR")
    return parser


def main(words: Sequence[str]) -> Path:
    """Run, and return the file of results."""
    parser = make_parser()
    args = parser.parse_args(words)
    lines = [shlex.split(line) for line in PRESETS.get(args.preset, [])]
    runs = [parser.parse_args([*line, "--device", args.device]) for line in lines] or [args]
    file = args.output / f"{args.preset or 'custom'}-{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {**machine(args.device), "command": shlex.join(words), "rows": []}
    todo = [(case, run) for run in runs for case in cases(run)]
    for case, run in tqdm(todo, desc="cases"):
        tf32 = case.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        results["rows"] += rows(case, {*run.variants, BASE, CONTROL}, run.rounds)
        with atomic_write(file) as partial:  # after each case: a long run may be interrupted
            partial.write_text(dump(results), encoding="utf-8")
    print(file)
    return file


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """All combinations of the arguments."""
    axes = (args.level, args.models, args.batch, args.mode, args.precision, args.memory_format)
    for level, model, batch, mode, precision, memory_format in itertools.product(*axes):
        if precision != "tf32" or args.device.startswith("cuda"):  # only GPUs have TF32
            size = (args.size[0], args.size[1])
            yield Case(level, model, size, batch, mode, precision, memory_format, args.device)


def rows(case: Case, names: set[str], rounds: int) -> Iterator[Row]:
    """The results of a case: one row for each variant, or implementation of an operation."""
    if case.level != "kernel":
        chosen = [v for v in VARIANTS if v.name in names and not (v.folded and case.training)]
        yield from _rows(case, case.level, 1, BASE, prepare(case, chosen), rounds)
        return
    for what, count, subjects in kernels.operations(case):
        yield from _rows(case, what, count, next(iter(subjects)), subjects, rounds)


def prepare(case: Case, variants: Sequence[Variant]) -> dict[str, tuple[Step, nn.Module, Errors]]:
    """Step, model and errors of each variant; no reference is left when the timing begins."""
    state, work = initial_state(case), workload(case)
    subjects: dict[str, tuple[Step, nn.Module, Errors]] = {}
    references: dict[Any, Reference] = {}
    for variant in variants:
        mathematics = variant.formula, tuple(variant.opts) if variant.stock else ()
        if mathematics not in references:
            true: Any = build_reference(variant, case, state)
            references[mathematics] = Reference(true, case)
        model: Any = build(variant, case, state)
        errors = check(variant.name, model, references[mathematics], case)
        subjects[variant.name] = work.step(model), model, errors
    return subjects


def _rows(
    case: Case,
    what: str,
    count: int,
    base: str,
    subjects: dict[str, tuple[Step, nn.Module, Errors]],
    rounds: int,
) -> Iterator[Row]:
    times = paired_times({name: step for name, (step, *_) in subjects.items()}, rounds)
    for name, (step, model, errors) in subjects.items():
        yield make_row(
            case,
            {"what": what, "count": count, "variant": name, "base": base},
            times[name],
            times[base],
            {"memory": memory(step, model, case.device), "launches": launches(step, case.device)},
            errors,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
