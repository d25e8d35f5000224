"""Files of results: JSON, with everything that the numbers depend on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import detectron2
import torch

import gnws_d2
from gnws_d2.files import atomic_write

Row = dict[str, Any]
_ROWS = ("rows", "accuracy")


def machine(device: str) -> dict[str, Any]:
    """Where and with what a run is made."""
    on_gpu = torch.device(device).type == "cuda"
    return {
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


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Write ``results`` with one line per row, so that a difference is readable."""
    lines = []
    for key, value in results.items():
        text = json.dumps(value)
        if key in _ROWS:
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        lines.append(f"{json.dumps(key)}: {text}")
    with atomic_write(file) as partial:
        partial.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


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
