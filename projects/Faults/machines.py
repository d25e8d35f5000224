"""Two machines whose link is cut: network namespaces of Linux, joined by a pair of interfaces."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import training
from trials import Trial, Wrong

INTERFACE = "gnws0"
TIMEOUT = 15.0  # seconds, SOLVER.PROCESS_TIMEOUT
PATIENCE = 30.0  # seconds more, for an iteration and for ending
CLONE_NEWNET = 0x40000000


def unavailable() -> str:
    """Why the trials cannot run here, or ""."""
    if shutil.which("ip") is None:
        return "the command ip is missing (package iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with machines():
            return ""
    except subprocess.CalledProcessError as error:
        return f"this kernel makes no network namespaces ({error.stderr.strip()})"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def machines() -> Iterator[list[str]]:
    """The names of two network namespaces; 10.203.0.1 is the address of the first."""
    names = [f"gnws{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ends = ["link", "add", INTERFACE, "netns", names[0], "type", "veth"]
        ip(*ends, "peer", "name", INTERFACE, "netns", names[1])
        for rank, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.203.0.{rank + 1}/24", "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def enter(name: str) -> None:
    """Move this process into a network namespace."""
    with open(f"/var/run/netns/{name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")


def start(outputs: list[Path], names: list[str] | None) -> list[int]:
    """Start a process in each namespace, or both in this one."""
    children = []
    address, interface, port = "10.203.0.1", INTERFACE, "29500"
    if names is None:
        address, interface = "127.0.0.1", "lo"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
    for rank, output in enumerate(outputs):
        env = {
            **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            **{"MASTER_ADDR": address, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "faults"},
            "GLOO_SOCKET_IFNAME": interface,
        }
        prepare = functools.partial(enter, names[rank]) if names else lambda: None
        words = ("SOLVER.PROCESS_TIMEOUT", str(TIMEOUT), "SOLVER.MAX_ITER", "24")
        children.append(training.start(output, *words, env=env, prepare=prepare))
    return children


def run(outputs: list[Path], names: list[str] | None) -> None:
    codes = [training.wait(child) for child in start(outputs, names)]
    if codes != [0, 0]:
        raise Wrong(f"ended with {codes}: {training.said(outputs[0])[-500:]}")


@functools.cache
def on_one_machine() -> dict:
    """The final checkpoint of two processes in one namespace."""
    folder = Path(tempfile.mkdtemp(prefix="faults_machine_"))
    run([folder / "0", folder / "1"], None)
    return training.final(folder / "0")


def undisturbed(rng: random.Random, folder: Path) -> str:
    """Two machines without a shared folder compute what two processes of one machine compute."""
    outputs = [folder / "0", folder / "1"]
    with machines() as names:
        run(outputs, names)
    return "" if training.same(training.final(outputs[0]), on_one_machine()) else "other weights"


def cut(rng: random.Random, folder: Path) -> str:
    """The link is cut while they train: both end with one line in time. Restored and resumed, they
    end with the checkpoint of an undisturbed run."""
    outputs = [folder / "0", folder / "1"]
    expected = on_one_machine()
    with machines() as names:
        children = start(outputs, names)
        first = outputs[0] / "model_0000002.pth"
        while not first.exists() and not (folder / "0" / "model_final.pth").exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        if (outputs[0] / "model_final.pth").exists():
            return "the training ended before the link was cut"
        at = rng.choice(names)
        ip("-n", at, "link", "set", INTERFACE, "down")
        began = time.monotonic()
        codes = [training.wait(child) for child in children]
        seconds = time.monotonic() - began
        for output, code in zip(outputs, codes, strict=True):
            lines = training.said(output)
            if code != 1 or "error: Lost contact" not in lines or "Traceback" in lines:
                return f"a process ended with {code}: {lines[-500:]}"
        if seconds > TIMEOUT + PATIENCE:
            return f"ended after {seconds:.0f} s"
        ip("-n", at, "link", "set", INTERFACE, "up")
        run(outputs, names)
    return "" if training.same(training.final(outputs[0]), expected) else "another checkpoint"


LIMIT = 600.0
CLASSES: dict[str, tuple[int, Trial]] = {
    "two machines": (1, undisturbed),
    "link cut": (2, cut),
}
