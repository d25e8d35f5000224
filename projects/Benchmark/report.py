#!/usr/bin/env python3
"""Makes the tables of docs/benchmarks.md, docs/export.md and projects/Acceleration/README.md from
the results in docs/benchmarks.

    python projects/Benchmark/report.py
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results import Row, read
from tabulate import tabulate
from variants import ARCHITECTURES, BASE, CONTROL, OURS

from gnws.marked_text import update_marked
from gnws_d2.projects.export import FORMATS

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "docs/benchmarks"  # of benchmark.py
RUNTIMES_FILE = RUNS / "runtimes/cpu.json"  # of runtimes.py
RUNTIMES = ["eager", "mmdetection", "folded"]
RUNTIMES += [name for name in FORMATS if name != "torchscript-script"]
PACKAGES = ["onnxruntime", "openvino"]  # whose versions the table names beside torch's
CASE = ("level", "model", "size", "mode", "precision", "device")  # what is compared


def update_documents() -> None:
    """Make all tables again."""
    runs = {file.name: read(file) for file in sorted(RUNS.glob("*.json"))}
    benchmarks = {"results": headline(runs), "runs": provenance(runs)}
    update_marked(ROOT / "docs/benchmarks.md", benchmarks)
    update_marked(ROOT / "docs/export.md", {"runtimes": by_runtime(read(RUNTIMES_FILE))})
    update_marked(ROOT / "projects/Acceleration/README.md", {"variants": by_variant(runs)})


def measured(runs: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Every row of every run, with memory relative to the base and, of the same run and case, the
    ratio of the control and the number of variants. The runs of November 2026 also timed single
    operations, of level "kernel", which are left out."""
    for run in runs.values():
        cases: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in run["rows"]:
            if row["level"] != "kernel":
                cases[_case(row)][row["variant"]] = row
        for rows in cases.values():
            control = rows[CONTROL]["ratio"]
            facts = {"machine": run["machine"], "variants": len(rows), "control": control}
            for row in rows.values():
                yield {**row, **facts, "memory": row["memory"] / rows[BASE]["memory"]}


def _case(row: Row) -> str:
    return repr([row[key] for key in CASE])


def headline(runs: dict[str, dict[str, Any]]) -> str:
    """GN+WS against GN: a line for each part, size, mode and machine, with larger models than R-50
    together. Of a case that several runs measured, the run with the most rounds counts."""
    best: dict[str, Row] = {}
    for row in sorted(measured(runs), key=lambda row: -len(row["seconds"])):
        if row["variant"] == OURS:
            best.setdefault(row["machine"] + _case(row), row)
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in best.values():
        groups[_group(row)].append(row)
    lines = [
        [
            *key[-3:],
            str(len(group)),
            _span([row["ratio"][0] for row in group]),
            _span([bound for row in group for bound in row["ratio"][1:]]),
            _span([bound for row in group for bound in row["control"][1:]]),
            _span([row["memory"] for row in group]),
        ]
        for key, group in sorted(groups.items())
    ]
    header = ["what", "machine", "size", "models", f"{OURS} / {BASE}", "95% interval", "control"]
    return _table(lines, [*header, "memory"])


def _group(row: Row) -> tuple:
    """What a line of the table is about, the last three in words; sorted in the order of lines."""
    large = "R_50" not in row["model"]
    part = "backbone" if row["level"] == "backbone" else "whole model"
    mode = "training" if row["mode"] == "train" else "inference"
    precision = row["precision"]
    unusual = [precision] if precision != "fp32" else []
    what = ", ".join([part, "R-101, X-50, X-101" if large else "R-50", mode, *unusual])
    size = "{} x {}".format(*row["size"])
    return part, large, mode == "inference", precision, what, row["machine"], size


def by_variant(runs: dict[str, dict[str, Any]]) -> str:
    """All variants of R-50 at 512 x 512 in float32, each from the run that compared the most."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    where = {"level": "backbone", "model": "mask_rcnn_R_50_FPN", "size": [512, 512]}
    where |= {"precision": "fp32", "device": "cpu"}
    for row in sorted(measured(runs), key=lambda row: (row["mode"] == "infer", -row["variants"])):
        if where.items() <= row.items() and row["variant"] not in (BASE, CONTROL):
            found[row["variant"]].setdefault(row["mode"], row)
    columns = ["time", "control", "memory"]
    header = [*(f"training: {c}" for c in columns), *(f"inference: {c}" for c in columns)]
    lines = [
        [name, *_cells(modes.get("train")), *_cells(modes.get("infer"))]
        for name, modes in found.items()
    ]
    return _table(lines, ["variant", *header])


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["-"] * 3
    ratios = ("{:.3f} ({:.3f} to {:.3f})".format(*row[key]) for key in ("ratio", "control"))
    return [*ratios, f"{row['memory']:.3f}"]


def provenance(runs: dict[str, dict[str, Any]]) -> str:
    """A line for each run: its command, and where it was made."""
    return "\n".join(
        f"- [{name}](benchmarks/{name}): `benchmark.py {run['command']}` at "
        f"{run.get('commit') or 'an unrecorded commit'}, {run['date']}; {run['machine']}, "
        f"{run['threads']} threads, load {run['load']} at the start, torch "
        f"{run['versions']['torch']}"
        for name, run in runs.items()
    )


def by_runtime(results: dict[str, Any]) -> str:
    """Time, memory, loading time and agreement: a table of models and runtimes each."""
    rows = {(row["model"], row["runtime"]): row for row in results["rows"]}
    cells: dict[str, Callable[[Row], str]] = {
        "time of an image; of eager": lambda row: (
            f"{np.median(row['seconds']):.2f} s"
            if row["runtime"] == "eager"
            else f"{row['ratio'][0]:.2f}"
        ),
        "peak memory, GiB": lambda row: f"{row['memory'] / 2**30:.2f}",
        "time to load, s": lambda row: f"{row['load']:.1f}",
        "same detections within 0.001": lambda row: "{} of {}".format(*row["same"]),
    }
    tables = []
    for what, cell in cells.items():
        lines = [
            [name, *(cell(rows[name, r]) if (name, r) in rows else "-" for r in RUNTIMES)]
            for name in ARCHITECTURES
            if (name, "eager") in rows
        ]
        tables.append(_table(lines, [what, *RUNTIMES]))
    trained = results["accuracy"]
    lines = [
        [name, *(f"{row[kind]:.2f}" for row in trained)]
        for name, kind in (("box", "bbox"), ("mask", "segm"))
    ]
    tables.append(_table(lines, ["AP on Digits, trained", *(row["runtime"] for row in trained)]))
    versions = (f"{name} {results['versions'][name]}" for name in ("torch", *PACKAGES))
    where = f"{results['machine']}, {results['threads']} threads, {', '.join(versions)}"
    commits = dict.fromkeys(row["commit"] for row in (*results["rows"], *trained))
    return "\n\n".join([*tables, f"{where}; until {results['date']}, at {', '.join(commits)}."])


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _table(rows: list[list[str]], header: list[str]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    update_documents()
