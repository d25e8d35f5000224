#!/usr/bin/env python3
"""Makes the tables of docs/benchmarks.md and projects/Acceleration/README.md from
docs/benchmarks/*.json.

    python projects/Benchmark/report.py output/benchmark/cpu-*.json    # adds these runs first
    python projects/Benchmark/report.py                                # makes the tables again
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from results import Row, read
from tabulate import tabulate
from variants import BASE, CONTROL, OURS

from gnws_d2.files import atomic_write
from gnws_d2.marked_text import replace_marked

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/benchmarks"
CASE = ("level", "what", "model", "size", "batch", "mode", "precision", "memory_format", "device")


class Measured(NamedTuple):
    """A variant in a run, and the rows of the same run and case by variant."""

    row: Row
    others: dict[str, Row]
    machine: str

    @property
    def memory(self) -> float:
        return self.row["memory"] / self.others[self.row["base"]]["memory"]

    @property
    def control(self) -> list[float]:
        return self.others[CONTROL]["ratio"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json")
    for file in parser.parse_args().results:
        read(file)  # refuses another form
        shutil.copy(file, RESULTS)
    for document, text in documents().items():
        with atomic_write(document) as partial:
            partial.write_text(text, encoding="utf-8")
        print(document)


def documents() -> dict[Path, str]:
    """The documents with the tables of all committed results."""
    runs = {file.name: read(file) for file in sorted(RESULTS.glob("*.json"))}
    page, project = ROOT / "docs/benchmarks.md", ROOT / "projects/Acceleration/README.md"
    results = replace_marked(page.read_text(encoding="utf-8"), "results", headline(runs))
    variants = replace_marked(project.read_text(encoding="utf-8"), "variants", by_variant(runs))
    return {page: replace_marked(results, "runs", provenance(runs)), project: variants}


def measured(runs: dict[str, dict[str, Any]]) -> Iterator[Measured]:
    """Every variant of every case of every run."""
    for run in runs.values():
        cases: dict[str, dict[str, Row]] = {}
        for row in run["rows"]:
            cases.setdefault(repr([row[key] for key in CASE]), {})[row["variant"]] = row
        for rows in cases.values():
            yield from (Measured(row, rows, run["machine"]) for row in rows.values())


def headline(runs: dict[str, dict[str, Any]]) -> str:
    """GN+WS against GN: a line for each part, size and mode, R-50 apart from larger models. Of a
    case that several runs measured, the run with the most rounds counts."""
    best: dict[str, Measured] = {}
    for m in measured(runs):
        if m.row["variant"] == OURS and m.row["level"] != "kernel":
            case = repr([m.machine, *(m.row[key] for key in CASE)])
            best[case] = max(best.get(case, m), m, key=lambda m: len(m.row["seconds"]))
    tables = []
    for machine in sorted({m.machine for m in best.values()}):
        groups: dict[tuple, list[Measured]] = {}
        for m in best.values():
            if m.machine == machine:
                groups.setdefault(_group(m.row), []).append(m)
        lines = [
            [
                *key[-2:],
                str(len(group)),
                _span([m.row["ratio"][0] for m in group]),
                _span([bound for m in group for bound in m.row["ratio"][1:]]),
                _span([bound for m in group for bound in m.control[1:]]),
                _span([m.memory for m in group]),
            ]
            for key, group in sorted(groups.items())
        ]
        header = [machine, "size", "models", f"{OURS} / {BASE}", "95% interval", "control"]
        tables.append(_table(lines, [*header, "memory"]))
    return "\n\n".join(tables)


def by_variant(runs: dict[str, dict[str, Any]], model: str = "mask_rcnn_R_50_FPN") -> str:
    """All variants of the backbone of ``model`` at 512 x 512 in float32, each from the run that
    compared the most."""
    found: dict[str, dict[str, Measured]] = {}
    where = ["backbone", model, [512, 512], 1, "fp32", "nchw", "cpu"]
    keys = ("level", "model", "size", "batch", "precision", "memory_format", "device")
    for m in measured(runs):
        if [m.row[key] for key in keys] == where and m.row["variant"] not in (BASE, CONTROL):
            modes = found.setdefault(m.row["variant"], {})
            old = modes.get(m.row["mode"], m)
            modes[m.row["mode"]] = max(old, m, key=lambda m: len(m.others))
    lines = []
    for name, modes in found.items():
        line = [name]
        for mode in ("train", "infer"):
            m = modes.get(mode)
            line += _cells(m) if m else ["-"] * 3
        lines.append(line)
    columns = ["time", "control", "memory"]
    header = [*(f"training: {c}" for c in columns), *(f"inference: {c}" for c in columns)]
    return _table(lines, ["variant", *header])


def provenance(runs: dict[str, dict[str, Any]]) -> str:
    """A line for each run: its command, and where it was made."""
    lines = []
    for name, run in runs.items():
        commit = run.get("commit") or "an unrecorded commit"
        lines.append(
            f"- [{name}](benchmarks/{name}): `benchmark.py {run['command']}` at {commit}, "
            f"{run['date']}; {run['machine']}, {run['threads']} threads, load {run['load']} at the "
            f"start, torch {run['versions']['torch']}"
        )
    return "\n".join(lines)


def _group(row: Row) -> tuple:
    """What a line of the table is about, the last two in words; sorted in the order of lines."""
    large = "R_50" not in row["model"]
    part = "backbone" if row["level"] == "backbone" else "whole model"
    mode = "training" if row["mode"] == "train" else "inference"
    unusual = tuple(str(row[key]) for key, usual in _USUAL.items() if row[key] != usual)
    what = ", ".join([part, "R-101, X-50, X-101" if large else "R-50", mode, *unusual])
    height, width = row["size"]
    return part, large, mode == "inference", unusual, what, f"{height} x {width}"


_USUAL = {"precision": "fp32", "memory_format": "nchw", "batch": 1}


def _cells(m: Measured) -> list[str]:
    return [_ratio(m.row["ratio"]), _ratio(m.control), f"{m.memory:.3f}"]


def _ratio(ratio: Sequence[float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*ratio)


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _table(rows: list[list[str]], header: list[str]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
