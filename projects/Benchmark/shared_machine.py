#!/usr/bin/env python3
"""Measure a training step of the demo on an idle CPU and beside a busy process, with other settings
of OpenMP: how its threads wait, and how many there are. Run it on a quiet machine.

The commands set GOMP_SPINCOUNT 1000 unless the user has set a variable. Each run is a process of
its own, as OpenMP reads the variables once.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from results import publish
from tabulate import tabulate

from gnws.openmp import SPINS, VARIABLES

ITERATIONS = 40
COMMAND = "import sys; from gnws.main import main; sys.exit(main())"
TRAIN = ("train", "--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "DATASETS.TEST", "()")
SETTINGS: dict[str, dict[str, str]] = {
    f"as the commands ({VARIABLES[0]} {SPINS})": {},
    "torch alone": {"": "import torch; "},  # which reads the variables before they are set
    **{f"GOMP_SPINCOUNT {n}": {"GOMP_SPINCOUNT": n} for n in ("100", "10000", "100000")},
    "OMP_WAIT_POLICY PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS 1": {"OMP_NUM_THREADS": "1"},
}


def step_seconds(setting: dict[str, str]) -> float:
    """The median time of a step, of the last 20."""
    variables = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "OMP_NUM_THREADS")}
    program = [sys.executable, "-c", setting.get("", "") + COMMAND]
    with tempfile.TemporaryDirectory() as folder:
        opts = ["SOLVER.MAX_ITER", str(ITERATIONS), "OUTPUT_DIR", folder, "SEED", "1"]
        environment = {**variables, **{k: v for k, v in setting.items() if k}}
        done = subprocess.run([*program, *TRAIN, *opts], env=environment, capture_output=True)
        if done.returncode:
            sys.exit(done.stderr.decode())
        return json.loads((Path(folder) / "metrics.json").read_text().splitlines()[-1])["time"]


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    times: dict[str, list[list[float]]] = {name: [[], []] for name in SETTINGS}
    for _ in range(rounds):
        for name, setting in SETTINGS.items():
            times[name][0].append(step_seconds(setting))
            with busy_process():
                times[name][1].append(step_seconds(setting))
            print(name, *(f"{found[-1]:.2f} s" for found in times[name]), flush=True)
    seconds = np.array([np.median(found, axis=1) for found in times.values()])
    ratios = seconds / seconds.min(axis=0)
    rows = [[name, *s, *r] for name, s, r in zip(times, seconds, ratios, strict=True)]
    header = ["setting", "idle (s)", "beside one (s)", "idle / best", "beside one / best"]
    table = tabulate(rows, header, tablefmt="github", floatfmt=".2f")
    publish("shared", table, f"Rounds: {rounds}")


if __name__ == "__main__":
    main()
