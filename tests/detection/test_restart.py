"""``torchrun --max-restarts`` with ``--resume``: a process is killed while it trains."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import LAST, TRAIN_NET, assert_same, command, result, wait_for

pytestmark = pytest.mark.slow


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


# A rendezvous that torchrun runs itself, and the default; the rank that is killed.
@pytest.mark.parametrize(("rendezvous", "rank"), [("--standalone", 1), ("--master-port", 0)])
def test_a_restarted_run_ends_like_an_undisturbed_one(
    steps, unbroken_in_two, tmp_path, rendezvous, rank
):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += ["--max-restarts=1", rendezvous]
    launcher += [str(free_port())] if rendezvous == "--master-port" else []
    output = tmp_path / "output"
    words = command(output, *steps, flags=["--resume"], program=TRAIN_NET)
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen([*launcher, *map(str, words)], stdout=said, stderr=said)
        try:
            saved = output / "last_checkpoint"  # written after the checkpoint that it names
            wait_for(lambda: saved.exists() or process.poll() is not None)
            os.kill(worker(process.pid, rank), signal.SIGKILL)
            code = process.wait(120)
        finally:
            process.terminate()
    assert code == 0, (tmp_path / "said.txt").read_text()[-3000:]
    assert (output / "log.txt").read_text().count("Starting training from iteration") == 2
    found = result(output)
    assert found["iteration"] == LAST
    assert_same(found, result(unbroken_in_two))
