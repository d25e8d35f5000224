#!/usr/bin/env python3
"""What GN+WS costs: paired times, memory and launches against the same model with GN alone.

    python projects/Benchmark/benchmark.py --preset cpu
    python projects/Benchmark/benchmark.py --level backbone --models mask_rcnn_R_50_FPN --mode infer

It writes JSON, tables in Markdown and plots; report.py takes those into docs/benchmarks.md.
All variants (variants.py) have the same weights, get the same input and are run in one process in
turn, in a random order that the next round reverses (A/B/B/A). A figure is the median over the
rounds of a variant's time divided by that of GN in the same round, with a 95% bootstrap interval;
"GN again" is the control: what differs from 1 there is noise. Every variant is compared with
float64 first; one that is wrong ends the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kernels
import report
import torch
from accuracy import SIZE, Errors, Reference, check
from measure import Comparison, Subject, launches, memory, paired_times
from results import dump, machine, row
from tqdm import tqdm
from variants import (
    ARCHITECTURES,
    BASE,
    CONTROL,
    Variant,
    build,
    build_reference,
    initial_state,
    variants,
)
from workloads import Case, workload

from gnws_d2.files import atomic_write
from gnws_d2.projects.acceleration import use_channels_last

# The command lines that a preset stands for.
_UNCOMPILED = "--without 'GN+WS, compiled'"  # compiling takes minutes
_SMOKE = f"--models Digits/mask_rcnn_R_18_FPN_gn_ws.yaml --size 64 96 --rounds 2 {_UNCOMPILED}"
_R50 = f"--models mask_rcnn_R_50_FPN {_UNCOMPILED}"
_MAIN = "--variants FrozenBN 'GN + plain WS' GN+WS 'GN+WS, folded'"
PRESETS = {
    # R-50 in depth, and all models by what matters most: an hour or two on two cores
    "cpu": [
        f"--level kernel {_R50} --rounds 6",
        f"--level backbone {_R50} --size 512 512 --rounds 20",
        f"--level backbone --models mask_rcnn_R_50_FPN {_MAIN} --rounds 16",
        "--level model --variants GN+WS 'GN+WS, folded' --size 512 512 --rounds 5",
    ],
    # all there is; hours
    "gpu": [
        "--level kernel backbone model --batch 1 2 --mode train --precision fp32 tf32 bf16"
        " --memory-format nchw channels_last --rounds 30",
        "--level kernel backbone model --batch 1 --mode infer --precision fp32 tf32 bf16"
        " --memory-format nchw channels_last --rounds 30",
    ],
    # seconds; its figures mean nothing
    "smoke": [f"--level kernel {_SMOKE}", f"--level backbone model {_SMOKE} --batch 1 2"],
}


# The check is made on a picture of one size; another size of the case does not repeat it.
_checked: dict[tuple[str, Case], Errors] = {}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    levels = ["kernel", "backbone", "model"]
    add("--level", nargs="+", choices=levels, default=levels)
    add("--models", nargs="+", default=list(ARCHITECTURES), help="or names or files of configs")
    add("--size", type=int, nargs=2, default=[800, 1333], metavar=("H", "W"))
    add("--batch", type=int, nargs="+", default=[1])
    add("--mode", nargs="+", choices=["train", "infer"], default=["train", "infer"])
    add("--precision", nargs="+", choices=["fp32", "tf32", "bf16"], default=["fp32"])
    add("--memory-format", nargs="+", choices=["nchw", "channels_last"], default=["nchw"])
    add("--variants", nargs="+", choices=names(), metavar="NAME", help=", ".join(names()))
    spared = [name for name in names() if name not in (BASE, CONTROL)]
    add("--without", nargs="+", choices=spared, metavar="NAME", default=[])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=int, default=16)
    add("--preset", choices=PRESETS, help="in place of all of the above but --device")
    add("--output", type=Path, default=Path("output/benchmark"), metavar="DIR")
    return parser


def main(words: Sequence[str]) -> Path:
    """Run, and give the file that the results are in, beside which tables and plots are."""
    parser = make_parser()
    args = parser.parse_args(words)
    lines = [shlex.split(line) for line in PRESETS.get(args.preset, [])]
    runs = [parser.parse_args([*line, "--device", args.device]) for line in lines] or [args]
    file = args.output / f"{args.preset or 'custom'}-{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {**machine(args.device), "command": shlex.join(words), "rows": []}
    todo = [(case, run) for run in runs for case in cases(run)]
    for case, run in tqdm(todo, desc="cases"):
        set_precision(case.precision)
        for comparison in comparisons(case, chosen(run, case.mode)):
            results["rows"] += measure(case, comparison, run.rounds)
        with atomic_write(file) as partial:  # after each case: a long run may be broken off
            partial.write_text(dump(results), encoding="utf-8")
    print(file, *report.write_beside(file), sep="\n")
    return file


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """All combinations of the arguments that there are."""
    axes = (args.level, args.models, args.batch, args.mode, args.precision, args.memory_format)
    for level, model, batch, mode, precision, memory_format in itertools.product(*axes):
        if precision == "tf32" and not args.device.startswith("cuda"):
            continue  # only GPUs have it
        size = tuple(args.size)
        yield Case(level, model, size, batch, mode, precision, memory_format, args.device)


def chosen(args: argparse.Namespace, mode: str) -> list[Variant]:
    """The variants that are asked for; what all are divided by, and its control, always are."""
    wanted = {*(args.variants or names()), BASE, CONTROL}.difference(args.without)
    return [variant for variant in variants(mode) if variant.name in wanted]


def names() -> list[str]:
    """Of all variants."""
    return [variant.name for variant in variants("infer")]


def set_precision(precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def comparisons(case: Case, compared: Sequence[Variant]) -> Iterator[Comparison]:
    """What is compared in ``case``: several operations at the level of kernels, else one step."""
    if case.level == "kernel":
        yield from kernels.comparisons(case)
        return
    yield Comparison(case.level, BASE, subjects(case, compared))


def subjects(case: Case, compared: Sequence[Variant]) -> dict[str, Subject]:
    """All variants, each checked; a reference is gone before anything is timed."""
    training = case.mode == "train"
    state = initial_state(case.model)
    work = workload(case)
    found: dict[str, Subject] = {}
    references: dict[Any, Reference] = {}
    for variant in compared:
        model: Any = build(variant, case.model, case.device, training, state)
        if case.memory_format == "channels_last":
            use_channels_last(model)
        key = variant.name, dataclasses.replace(case, size=SIZE, batch=1)
        if key not in _checked:
            mathematics = variant.reference, variant.name == "FrozenBN"
            if mathematics not in references:
                true: Any = build_reference(variant, case.model, case.device, training, state)
                references[mathematics] = Reference(true, case)
            _checked[key] = check(variant.name, model, references[mathematics], case)
        found[variant.name] = Subject(work.step(model), model, _checked[key])
    return found


def measure(case: Case, comparison: Comparison, rounds: int) -> list[dict[str, Any]]:
    """A row for each variant."""
    steps = {name: subject.step for name, subject in comparison.subjects.items()}
    times = paired_times(steps, rounds, case.device)
    memories = {
        name: memory(s.step, s.model, case.device) for name, s in comparison.subjects.items()
    }
    launched = {name: launches(step, case.device) for name, step in steps.items()}
    return [row(case, comparison, n, times, memories[n], launched[n]) for n in steps]


if __name__ == "__main__":
    main(sys.argv[1:])
