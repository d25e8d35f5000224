"""Two machines whose link is cut: network namespaces of Linux, joined by a pair of interfaces."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainings import LIMIT, compare, finish, said, start
from trials import Trial, Unavailable

INTERFACE = "gnws0"
ADDRESS = "10.203.0.1"  # of the first machine
TIMEOUT = 15.0  # seconds, SOLVER.PROCESS_TIMEOUT
PATIENCE = 30.0  # seconds more, for an iteration and for ending


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def machines() -> Iterator[list[str]]:
    """The names of two network namespaces."""
    names = [f"gnws{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ends = ["link", "add", INTERFACE, "netns", names[0], "type", "veth"]
        ip(*ends, "peer", "name", INTERFACE, "netns", names[1])
        for name, address in zip(names, (ADDRESS, "10.203.0.2"), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start_both(outputs: Sequence[Path], names: Sequence[str]) -> list[subprocess.Popen]:
    """Start a training of two processes, each in the namespace of its name."""
    processes = []
    for rank, (output, name) in enumerate(zip(outputs, names, strict=True)):
        env = {
            **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            **{"MASTER_ADDR": ADDRESS, "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "faults"},
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }
        opts = ("SOLVER.PROCESS_TIMEOUT", str(TIMEOUT))
        processes.append(start(output, *opts, env=env, through=("ip", "netns", "exec", name)))
    return processes


@functools.cache
def prepare() -> dict[str, Any]:
    """The final checkpoint of two processes of one machine."""
    if shutil.which("ip") is None:
        raise Unavailable("the command ip is missing (package iproute2)")
    if os.geteuid() != 0:
        raise Unavailable("network namespaces need root")
    folder = Path(tempfile.mkdtemp(prefix="faults_machine_"))
    outputs = [folder / "0", folder / "1"]
    try:
        with machines() as names:
            return finish(outputs[0], *start_both(outputs, [names[0]] * 2))
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"this kernel makes no network namespaces ({error.stderr})") from error


def cut(rng: random.Random, folder: Path) -> str:
    """The link is cut while they train, without a shared folder: both end with one line in time.
    Restored and resumed, they end with what two processes of one machine compute."""
    outputs = [folder / "0", folder / "1"]
    expected = prepare()
    with machines() as names:
        processes = start_both(outputs, names)
        while not (outputs[0] / "model_0000002.pth").exists() and processes[0].poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        if (outputs[0] / "model_final.pth").exists():
            return "the training ended before the link was cut"
        at = rng.choice(names)
        ip("-n", at, "link", "set", INTERFACE, "down")
        began = time.monotonic()
        codes = [process.wait() for process in processes]
        seconds = time.monotonic() - began
        for output, code in zip(outputs, codes, strict=True):
            lines = said(output)
            if code != 1 or "error: Lost contact" not in lines or "Traceback" in lines:
                return f"a process ended with {code}: {lines[-500:]}"
        if seconds > TIMEOUT + PATIENCE:
            return f"ended after {seconds:.0f} s"
        ip("-n", at, "link", "set", INTERFACE, "up")
        return compare(finish(outputs[0], *start_both(outputs, names)), expected)


CLASSES: dict[str, tuple[int, Trial]] = {"link cut": (2, cut)}

__all__ = ["CLASSES", "LIMIT", "prepare"]
