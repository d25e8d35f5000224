"""The form of a file of results: JSON, with everything that its numbers depend on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from case import Case
from measure import ratio

import gnws_d2

FORMAT = 1
Row = dict[str, Any]


def machine(device: str) -> dict[str, Any]:
    """Where and with what a run is made."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "format": FORMAT,
        "date": f"{datetime.date.today()}",
        "commit": _commit(),
        "machine": torch.cuda.get_device_name(device) if on_gpu else _processor(),
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


def make_row(
    case: Case,
    names: Mapping[str, Any],
    times: np.ndarray,
    base: np.ndarray,
    counts: Mapping[str, Any],
    errors: Sequence[float | None],
) -> Row:
    """One variant of one comparison.

    Args:
        case: what was compared on.
        names: "what" was run, its "count" in a model, the "variant", and the "base".
        times, base: (rounds,) seconds of the variant, and of the base.
        counts: bytes of "memory", and kernel "launches".
        errors: relative, against float64.
    """
    return {
        **asdict(case),
        **names,
        "seconds": [float(f"{t:.4g}") for t in times],
        "ratio": [round(r, 4) for r in ratio(times, base)],
        **counts,
        "errors": [None if e is None else float(f"{e:.1e}") for e in errors],
    }


def dump(results: dict[str, Any]) -> str:
    """JSON with one line per row, so that a difference is readable."""
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
            f"{file} is not a file of results in format {FORMAT} (its format is "
            f"{results.get('format')!r}). Make it again with projects/Benchmark/benchmark.py."
        )
    return results


def _commit() -> str | None:
    """Of the source tree, with "-dirty" where it differs; None without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ended.stdout.strip()


def _processor() -> str:
    """The CPU's name on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
