#!/usr/bin/env python3
"""Attack the package with damaged and hostile input, and count what survives.

    faults.py                       # all, into docs/reliability.md and docs/reliability.json
    faults.py configs downloads     # these corpora
    faults.py --dry-run --seed 5    # other trials of the same kinds; nothing is written
    faults.py --only configs/values/17      # one trial, with its error's traceback

A trial survives if its result is right or a one-line error of the package, within a time limit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate
from trials import LOST, SURVIVED, Unavailable, perform, run

from gnws_d2.files import atomic_write
from gnws_d2.marked_text import replace_marked

CORPORA = ("configs", "checkpoints", "datasets", "downloads", "kills", "machines")
DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT, COUNTS = DOCS / "reliability.md", DOCS / "reliability.json"

Counts = dict[str, dict[str, Mapping[str, int]]]  # corpus -> class -> outcome -> trials


def attack(corpus: str, seed: int, scale: float) -> dict[str, Mapping[str, int]]:
    """The outcomes of each class; {} if the corpus cannot run here. Those lost are printed."""
    module = importlib.import_module(corpus)
    try:
        getattr(module, "prepare", list)()  # once, for all its trials
    except Unavailable as reason:
        print(f"{corpus} skipped: {reason}", file=sys.stderr)
        return {}
    counts = {kind: Counter() for kind in module.CLASSES}
    for kind, (trials, _) in module.CLASSES.items():
        for index in range(max(1, round(trials * scale))):
            outcome, detail = run(f"{corpus}/{kind}/{index}", seed)
            counts[kind][outcome] += 1
            if outcome in LOST:
                print(f"{outcome}: {corpus}/{kind}/{index}: {detail}", flush=True)
    return counts


def table(counts: Counts) -> str:
    rows: list[list] = []
    for corpus, kinds in counts.items():
        for kind, found in kinds.items():
            survived = sum(found.get(outcome, 0) for outcome in SURVIVED)
            lost = [found.get(outcome, 0) for outcome in LOST]
            rows.append([corpus, kind, sum(found.values()), survived, *lost])
    rows.append(["all", "", *map(sum, zip(*(row[2:] for row in rows), strict=True))])
    header = ["corpus", "class", "trials", "survived", "silently wrong", "hang", "crash"]
    return tabulate(rows, [*header, "bare traceback"], tablefmt="github")


def keep(counts: Counts) -> None:
    """Write the counts, and those kept of other corpora, into the two documents."""
    counts = json.loads(COUNTS.read_text(encoding="utf-8")) | counts
    counts = {corpus: counts[corpus] for corpus in CORPORA if corpus in counts}
    document = replace_marked(DOCUMENT.read_text(encoding="utf-8"), "faults", table(counts))
    for file, text in ((COUNTS, json.dumps(counts, indent=1) + "\n"), (DOCUMENT, document)):
        with atomic_write(file) as partial:
            partial.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help=f"of {', '.join(CORPORA)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of trials")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--only", metavar="TRIAL", help="run one, as the output names it")
    args = parser.parse_args()
    if unknown := set(args.corpora) - set(CORPORA):
        parser.error(f"no such corpus: {', '.join(unknown)}; choose from {', '.join(CORPORA)}")
    if args.only:
        with tempfile.TemporaryDirectory() as folder:
            print(perform(args.only, args.seed, Path(folder)) or "right")
        return 0
    counts = {c: attack(c, args.seed, args.scale) for c in args.corpora or CORPORA}
    counts = {corpus: kinds for corpus, kinds in counts.items() if kinds}
    print(table(counts))
    if not args.dry_run:
        keep(counts)
    lost = [n for kinds in counts.values() for kind in kinds.values() for n in map(kind.get, LOST)]
    return int(any(lost))


if __name__ == "__main__":
    sys.exit(main())
