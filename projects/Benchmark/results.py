"""Files of results: JSON, with everything that the numbers depend on."""

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import detectron2
import torch

import gnws_d2
from gnws.marked_text import update_marked
from gnws_d2.files import atomic_write

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
Row = dict[str, Any]


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


def publish(mark: str, table: str, *notes: str) -> None:
    """Print a table measured on the CPU, and put it into docs/benchmarks.md, at ``mark``, with
    ``notes`` and where and when it was measured."""
    print(table)
    about = machine("cpu")
    where = f"{about['machine']}, {os.cpu_count()} cores, {about['date']}, {about['commit']}."
    update_marked(DOCUMENT, {mark: f"{table}\n\n{'; '.join([*notes, where])}"})


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Write ``results`` with one line per row, so that a difference is readable."""
    lines = []
    for key, value in results.items():
        is_table = key in ("rows", "accuracy")
        text = ",\n".join(map(json.dumps, value)) if is_table else json.dumps(value)
        text = f"[\n{text}\n]" if is_table else text
        lines.append(f"{json.dumps(key)}: {text}")
    with atomic_write(file) as partial:
        partial.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def _commit() -> str | None:
    """Of the source tree, with "-dirty" where it differs; None without git."""
    folder = shlex.quote(str(Path(__file__).parent))
    failed, said = subprocess.getstatusoutput(f"git -C {folder} describe --always --dirty")
    return None if failed else said


def _processor() -> str:
    """The CPU's name on Linux."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    named = re.search(r"^model name\s*: (.+)", info, re.MULTILINE)
    return named[1] if named else platform.machine()
