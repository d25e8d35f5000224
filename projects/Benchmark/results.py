"""The form of a file of results: JSON, with everything that its figures depend on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from measure import Comparison, ratio
from workloads import Case

import gnws_d2

FORMAT = 1
CASE = ("what", "model", "size", "batch", "precision", "memory_format")  # within level and mode
Row = dict[str, Any]


def machine(device: str) -> dict[str, Any]:
    """Where and with what a run is made."""
    name = _processor()
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "format": FORMAT,
        "date": f"{datetime.date.today()}",
        "commit": _commit(),
        "machine": name,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),  # of other programs, at the beginning
        "versions": {
            "gnws_d2": gnws_d2.__version__,
            "torch": torch.__version__,
            "detectron2": detectron2.__version__,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "python": platform.python_version(),
        },
    }


def row(
    case: Case,
    comparison: Comparison,
    name: str,
    times: Mapping[str, np.ndarray],
    memory: int,
    launches: int | None,
) -> Row:
    """One variant of one comparison."""
    errors = comparison.subjects[name].errors
    to_base = ratio(times[name], times[comparison.base])
    return {
        **asdict(case),
        **{"what": comparison.what, "count": comparison.count},
        **{"variant": name, "base": comparison.base},
        **{"seconds": [float(f"{t:.4g}") for t in times[name]]},
        "ratio": [round(r, 4) for r in to_base],
        **{"memory": memory, "launches": launches},
        "errors": [None if e is None else float(f"{e:.1e}") for e in errors],
    }


def dump(results: dict[str, Any]) -> str:
    """JSON with a line for each row, so that a difference can be read."""
    head = {key: value for key, value in results.items() if key != "rows"}
    lines = ",\n".join(json.dumps(row) for row in results["rows"])
    return json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]\n}}\n'


def read(file: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        ValueError: it has another form.
    """
    results = json.loads(file.read_text(encoding="utf-8"))
    if results.get("format") != FORMAT:
        raise ValueError(
            f"{file} is no file of results in format {FORMAT} (it has "
            f"{results.get('format')!r}). Make it anew with projects/Benchmark/benchmark.py."
        )
    return results


def groups(rows: Iterable[Row], keys: Sequence[str]) -> Iterator[tuple[tuple, list[Row]]]:
    """Rows that agree in ``keys``, and their values, in the order in which they first appear."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(repr([row[key] for key in keys]), []).append(row)
    for group in found.values():
        yield tuple(group[0][key] for key in keys), group


def describe(row: Row) -> str:
    """The case of a row, in words."""
    height, width = row["size"]
    what = "" if row["what"] == row["level"] else f"{row['what']}, {row['count']}x; "
    return (
        f"{what}{Path(row['model']).stem}, {row['batch']} x {height} x {width}, "
        f"{row['precision']}, {row['memory_format']}"
    )


def _commit() -> str | None:
    """Of the source tree, with "-dirty" where it differs; None where there is no git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ended.stdout.strip()


def _processor() -> str:
    """The CPU's name as Linux knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
