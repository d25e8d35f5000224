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
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tabulate import tabulate
from trials import OUTCOMES, SURVIVED, Task, run

from gnws_d2.files import atomic_write
from gnws_d2.marked_text import replace_marked

CORPORA = ("configs", "checkpoints", "datasets", "downloads", "kills", "machines")
DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT, COUNTS = DOCS / "reliability.md", DOCS / "reliability.json"


def tasks_of(corpora: list[str], scale: float) -> list[Task]:
    """The trials of all corpora that can run here; a corpus may have a function ``unavailable``."""
    tasks = []
    for corpus in corpora:
        module = importlib.import_module(corpus)
        if reason := getattr(module, "unavailable", str)():
            print(f"{corpus} skipped: {reason}", file=sys.stderr)
            continue
        for kind, (count, _) in module.CLASSES.items():
            tasks += [Task(corpus, kind, i) for i in range(max(1, round(count * scale)))]
    return tasks


def table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    rows = []
    for corpus, kinds in counts.items():
        for kind, found in kinds.items():
            survived = sum(found.get(outcome, 0) for outcome in SURVIVED)
            others = [found.get(outcome, 0) for outcome in OUTCOMES[len(SURVIVED) :]]
            rows.append([corpus, kind, sum(found.values()), survived, *others])
    total = ["all", "", *map(sum, zip(*(row[2:] for row in rows), strict=True))]
    header = ["corpus", "class", "trials", "survived", "silently wrong", "hang", "crash"]
    return tabulate([*rows, total], [*header, "bare traceback"], tablefmt="github")


def keep(counts: dict[str, dict[str, dict[str, int]]]) -> None:
    for file, text in (
        (COUNTS, json.dumps(counts, indent=1) + "\n"),
        (
            DOCUMENT,
            replace_marked(DOCUMENT.read_text(encoding="utf-8"), "faults", table(counts)),
        ),
    ):
        with atomic_write(file) as partial:
            partial.write_text(text, encoding="utf-8")


def only(name: str, seed: int) -> None:
    corpus, kind, index = name.split("/")
    task = Task(corpus, kind, int(index))
    trial = importlib.import_module(corpus).CLASSES[kind][1]
    with tempfile.TemporaryDirectory() as folder:
        print(trial(random.Random(f"{seed}/{task}"), Path(folder)) or "right")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help=f"of {', '.join(CORPORA)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of trials")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--only", metavar="TRIAL", help="run one, as the output names it")
    args = parser.parse_args()
    if unknown := set(args.corpora) - set(CORPORA):
        parser.error(f"no such corpus: {', '.join(unknown)}; choose from {', '.join(CORPORA)}")
    if args.only:
        only(args.only, args.seed)
        return 0
    corpora = args.corpora or list(CORPORA)
    found: dict[tuple[str, str], Counter[str]] = {}
    for result in run(tasks_of(corpora, args.scale), args.seed, args.jobs):
        task = result.task
        found.setdefault((task.corpus, task.kind), Counter())[result.outcome] += 1
        if result.outcome not in SURVIVED:
            print(f"{result.outcome}: {task}: {result.detail}", flush=True)
    corpora = [corpus for corpus in corpora if any(corpus == tried for tried, _ in found)]
    counts = {} if args.dry_run or not COUNTS.exists() else json.loads(COUNTS.read_text())
    for corpus in corpora:
        kinds = importlib.import_module(corpus).CLASSES
        counts[corpus] = {k: dict(sorted(found[corpus, k].items())) for k in kinds}
    counts = {corpus: counts[corpus] for corpus in CORPORA if corpus in counts}
    print(json.dumps({corpus: counts[corpus] for corpus in corpora}, indent=1))
    print(table(counts))
    if not args.dry_run:
        keep(counts)
    lost = sum(n for kinds in found.values() for o, n in kinds.items() if o not in SURVIVED)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
