"""``torchrun --max-restarts`` with ``--resume``: a process is killed while it trains."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_stopping import STEPS, wait_for
from test_train_net import make_command

pytestmark = pytest.mark.slow

LAST = 15


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def worker(parent: int, rank: int) -> int:
    """The process of a rank that torchrun has started."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise LookupError(f"{parent} has no process of rank {rank}")


def train(words, output: Path, launcher: list[str], kills: dict[int, int]) -> dict:
    """The final checkpoint of a run whose process of a rank is killed after an iteration, for each
    (iteration, rank) of ``kills``."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *launcher]
    with (output.with_suffix(".txt")).open("w") as said:
        process = subprocess.Popen([*torchrun, *words], stdout=said, stderr=said)
        try:
            for iteration, rank in kills.items():
                saved = output / f"model_{iteration:07d}.pth"
                wait_for(lambda file=saved: file.exists() or process.poll() is not None)
                os.kill(worker(process.pid, rank), signal.SIGKILL)
            code = process.wait(120)
        finally:
            process.terminate()
    assert code == 0, output.with_suffix(".txt").read_text()[-3000:]
    content = torch.load(output / "model_final.pth", weights_only=True)
    return {key: content[key] for key in ("model", "trainer", "iteration")}  # not OUTPUT_DIR


def test_a_restarted_run_ends_like_an_undisturbed_one(digits, tmp_path):
    command, found = make_command(tmp_path, digits), []
    launchers = {
        "whole": (["--standalone"], {}),
        "standalone": (["--standalone", "--max-restarts=1"], {2: 1}),
        "static": (
            [f"--master-port={free_port()}", "--max-restarts=2"],
            {2: 1, 8: 0},
        ),  # the default
    }
    for name, (launcher, kills) in launchers.items():
        output = tmp_path / name
        words = command("--resume", *STEPS, "SOLVER.MAX_ITER", LAST, "OUTPUT_DIR", output)
        found.append(train(words, output, launcher, kills))
        log = (output / "log.txt").read_text()
        assert log.count("Starting training from iteration") == 1 + len(kills)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)
