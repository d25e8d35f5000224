#!/usr/bin/env python3
"""Makes the tables of docs/benchmarks.md, docs/export.md and projects/Acceleration/README.md from
the results in docs/benchmarks.

    python projects/Benchmark/report.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from case import ARCHITECTURES
from results import Row, read
from tabulate import tabulate
from variants import BASE, CONTROL, OURS

from gnws.marked_text import replace_marked
from gnws_d2.projects.export import FORMATS

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "docs/benchmarks"  # of benchmark.py
RUNTIMES_FILE = RUNS / "runtimes/cpu.json"  # of runtimes.py
RUNTIMES = ["eager", "mmdetection", "folded"]
RUNTIMES += [name for name in FORMATS if name != "torchscript-script"]
PACKAGES = ["onnxruntime", "openvino"]  # whose versions the table names beside torch's
# What is compared; only the runs of November 2026, which also timed single operations, have "what".
CASE = ("level", "what", "model", "size", "mode", "precision", "device")


def update_documents() -> None:
    """Make all tables again."""
    runs = {file.name: read(file) for file in sorted(RUNS.glob("*.json"))}
    _update("docs/benchmarks.md", results=headline(runs), runs=provenance(runs))
    _update("docs/export.md", runtimes=by_runtime(read(RUNTIMES_FILE)))
    _update("projects/Acceleration/README.md", variants=by_variant(runs))


def _update(document: str, **tables: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for name, table in tables.items():
        text = replace_marked(text, name, table)
    (ROOT / document).write_text(text, encoding="utf-8")


def measured(runs: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Every row of every run, with memory relative to the base and, of the same run and case, the
    ratio of the control and the number of variants."""
    for run in runs.values():
        cases: dict[str, dict[str, Row]] = {}
        for row in run["rows"]:
            cases.setdefault(_case(row), {})[row["variant"]] = row
        for rows in cases.values():
            facts = {"machine": run["machine"], "variants": len(rows)}
            if CONTROL in rows:
                facts["control"] = rows[CONTROL]["ratio"]
            for row in rows.values():
                yield {**row, **facts, "memory": row["memory"] / rows[row["base"]]["memory"]}


def _case(row: Row) -> str:
    return repr([row.get(key) for key in CASE])


def headline(runs: dict[str, dict[str, Any]]) -> str:
    """GN+WS against GN: a line for each part, size, mode and machine, with larger models than R-50
    together. Of a case that several runs measured, the run with the most rounds counts."""
    best: dict[str, Row] = {}
    for row in measured(runs):
        if row["variant"] == OURS and row["level"] != "kernel":
            case = row["machine"] + _case(row)
            best[case] = max(best.get(case, row), row, key=lambda row: len(row["seconds"]))
    groups: dict[tuple, list[Row]] = {}
    for row in best.values():
        groups.setdefault(_group(row), []).append(row)
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
    """All variants of the R-50 backbone at 512 x 512 in float32, each from the run that compared
    the most."""
    found: dict[str, dict[str, Row]] = {}
    where = ["backbone", "mask_rcnn_R_50_FPN", [512, 512], "fp32", "cpu"]
    keys = ("level", "model", "size", "precision", "device")
    for row in measured(runs):
        if [row[key] for key in keys] == where and row["variant"] not in (BASE, CONTROL):
            modes = found.setdefault(row["variant"], {})
            old = modes.get(row["mode"], row)
            modes[row["mode"]] = max(old, row, key=lambda row: row["variants"])
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
