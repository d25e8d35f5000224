"""Short trainings that are killed, or on two machines whose link is cut, and resumed.

The machines are network namespaces of Linux, joined by a pair of interfaces.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from trials import Wrong, trials

from gnws_d2.files import cache_path
from gnws_d2.projects.digits import make_digits

CACHE = cache_path()  # a trial has its own
LIMIT = 600.0  # seconds a trial
INTERFACE = "gnws0"
ADDRESS = "10.203.0.1"
TIMEOUT = 15.0  # seconds, SOLVER.PROCESS_TIMEOUT
PATIENCE = 30.0  # seconds more, for an iteration and for ending
PROGRAM = Path(__file__).resolve().parents[1] / "Detection" / "train_net.py"
OPTS = (
    *("--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "--resume"),
    *("SOLVER.MAX_ITER", "24", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.REFERENCE_WORLD_SIZE", "0", "SEED", "7", "DATASETS.TEST", "()"),
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[48],[64]]"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
)


def start(
    output: Path, *opts: str, env: Mapping[str, str] = {}, through: Sequence[str] = ()
) -> subprocess.Popen:
    """Start or resume a training on Digits, ``through`` another command. What it prints replaces
    ``output``.txt."""
    data = ("DATASETS.TRAIN", str((f"{make_digits(CACHE, 3, 1)}/digits_train.json",)))
    words = [*through, sys.executable, str(PROGRAM), *OPTS, *data, *opts, "OUTPUT_DIR", str(output)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    with open(f"{output}.txt", "w") as printed:
        return subprocess.Popen(words, env=env, stdout=printed, stderr=printed)


def said(output: Path) -> str:
    return Path(f"{output}.txt").read_text(encoding="utf-8")


def finish(output: Path, *processes: subprocess.Popen) -> dict[str, Any]:
    """The last checkpoint of a training, without what the file says about itself."""
    codes = [process.wait() for process in processes]
    if any(codes):
        raise Wrong(f"ended with {codes}: {said(output)[-500:]}")
    content = torch.load(output / "model_final.pth", weights_only=True)
    return {key: content[key] for key in ("model", "trainer", "iteration")}


def compare(found: dict[str, Any], expected: dict[str, Any]) -> str:
    try:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    except AssertionError as error:
        return f"another checkpoint: {error}"
    return ""


@trials(4, "killed")
def killed(rng: random.Random, folder: Path) -> str:
    """Stopped once or twice at any moment and resumed, it ends as an undisturbed one."""
    began = time.monotonic()
    expected = finish(folder / "whole", start(folder / "whole"))
    seconds = time.monotonic() - began
    output = folder / "output"
    for _ in range(rng.randint(1, 2)):
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        process = start(output)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        code = process.wait()
        if code not in (0, -number, 128 + number):
            return f"{number.name} ends it with code {code}: {said(output)[-500:]}"
    return compare(finish(output, start(output)), expected)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def machines() -> Iterator[list[str]]:
    """The names of two network namespaces; ADDRESS is that of the first."""
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


def cut(rng: random.Random, folder: Path) -> str:
    """The link is cut while they train, without a shared folder: both end with one line in time.
    Restored and resumed, they end with what two processes of one machine compute."""
    whole, outputs = [folder / "a", folder / "b"], [folder / "0", folder / "1"]
    with machines() as names:
        expected = finish(whole[0], *start_both(whole, [names[0]] * 2))
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
            text = said(output)
            if code != 1 or "error: Lost contact" not in text:
                return f"a process ended with {code}: {text[-500:]}"
            if "Traceback" in text:
                return "a traceback is printed before the error"
        if seconds > TIMEOUT + PATIENCE:
            return f"ended after {seconds:.0f} s"
        ip("-n", at, "link", "set", INTERFACE, "up")
        return compare(finish(outputs[0], *start_both(outputs, names)), expected)


if os.geteuid() == 0 and shutil.which("ip"):
    trials(2, "link cut")(cut)
