#!/usr/bin/env python3
"""Attack the package with damaged and hostile input, and count what survives.

    faults.py                       # all, into the tables of docs/reliability.md
    faults.py configs downloads     # these corpora, into their tables
    faults.py --dry-run --seed 5    # other trials of the same kinds; nothing is written
    faults.py --only configs/values/17      # one trial, with its error's traceback

A trial survives if its result is right or a one-line error of the package, within a time limit.
"""

import importlib
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

from tabulate import tabulate
from trials import LOST, OUTCOMES, perform, run

from gnws.marked_text import update_marked

CORPORA = ("configs", "checkpoints", "datasets", "downloads", "trainings", "reports")
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"


def attack(corpus: str, seed: int, scale: float) -> dict[str, Counter[str]]:
    """The outcomes of each class of trials. Those lost are printed."""
    counts: dict[str, Counter[str]] = {}
    for kind, (trials, _) in importlib.import_module(corpus).CLASSES.items():
        counts[kind] = Counter()
        for index in range(max(1, round(trials * scale))):
            outcome, detail = run(f"{corpus}/{kind}/{index}", seed)
            counts[kind][outcome] += 1
            if outcome in LOST:
                print(f"{outcome}: {corpus}/{kind}/{index}: {detail}", flush=True)
    return counts


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    of = f"of {', '.join(CORPORA)}"
    choices = (*CORPORA, [])  # before Python 3.12, argparse also checks that none is named
    parser.add_argument("corpora", nargs="*", choices=choices, metavar="CORPUS", help=of)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of trials")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--only", metavar="TRIAL", help="run one, as the output names it")
    args = parser.parse_args()
    if args.only:
        with tempfile.TemporaryDirectory() as folder:
            print(perform(args.only, args.seed, Path(folder)) or "right")
        return 0
    lost = 0
    describe = ["git", "describe", "--always", "--dirty"]  # before the document changes
    version = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    for corpus in args.corpora or CORPORA:
        counts = attack(corpus, args.seed, args.scale)
        lost += sum(found[outcome] for found in counts.values() for outcome in LOST)
        rows = [[kind, n.total(), *(n[end] for end in OUTCOMES)] for kind, n in counts.items()]
        header = [f"{corpus}, seed {args.seed}, commit {version}", "trials", *OUTCOMES]
        made = tabulate(rows, header, tablefmt="github")
        print(made)
        if not args.dry_run:
            update_marked(DOCUMENT, {corpus: made})
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
