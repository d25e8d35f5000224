"""Real signals to ``train_net.py``, in one process and in two, and resuming after them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import run, start
from trainings import LAST, STEPS, TRAIN_NET, assert_same, command, result, wait_for

pytestmark = pytest.mark.slow


def started(folder, steps, *flags):
    """A training in folder/run, once it has saved a checkpoint."""
    words = command(folder / "run", *steps, flags=list(flags))
    process = start(*words, stdout=str(folder / "out"), stderr=str(folder / "err"))
    wait_for((folder / "run" / "last_checkpoint").exists, process)
    return process


def processes_of(group: int) -> list[int]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,pgid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and state[0] != "Z"]


def stopped(process, number: int, folder: Path) -> int:
    """Wait for the end by a signal; return the iteration of the checkpoint that was saved."""
    process.join(60)
    said = (folder / "out").read_text() + (folder / "err").read_text()
    assert process.exitcode == 128 + number, said
    wait_for(lambda: not processes_of(process.pid), seconds=10)
    assert "Traceback" not in said, said
    saved = (folder / "run" / "last_checkpoint").read_text()
    iteration = torch.load(folder / "run" / saved, weights_only=True)["iteration"]
    assert saved == f"model_{iteration:07d}.pth"
    name = signal.Signals(number).name
    assert f"Stopped by {name} after iteration {iteration} of" in said and "--resume" in said
    return iteration


# how -> (flags, number of the signal, whether the whole group gets it as from a terminal)
CASES = {
    "SIGINT": ([], signal.SIGINT, False),
    "SIGTERM, the group": ([], signal.SIGTERM, True),
    "SIGKILL, the group": ([], signal.SIGKILL, True),
    "SIGTERM, the launcher of two processes": (["--num-gpus=2"], signal.SIGTERM, False),
    "SIGINT, the group of two processes": (["--num-gpus=2"], signal.SIGINT, True),
}


@pytest.mark.parametrize(("flags", "number", "whole_group"), CASES.values(), ids=CASES)
def test_a_run_that_was_stopped_resumes_to_the_result_of_an_unbroken_one(
    steps, tmp_path, request, flags, number, whole_group
):
    process = started(tmp_path, steps, *flags)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    if number == signal.SIGKILL:
        process.join(60)
        saved = (tmp_path / "run" / "last_checkpoint").read_text()
        iteration = torch.load(tmp_path / "run" / saved, weights_only=True)["iteration"]
    else:
        iteration = stopped(process, number, tmp_path)
    assert iteration < LAST, "it was not stopped in time"
    done = run(*command(tmp_path / "run", *steps, flags=[*flags, "--resume"]))
    assert done.returncode == 0, done.stderr
    assert f"from iteration {iteration + 1}" in (tmp_path / "run" / "log.txt").read_text()
    unbroken = request.getfixturevalue("unbroken_in_two" if flags else "unbroken")
    assert_same(result(tmp_path / "run"), result(unbroken))


SLOW_STEP = """
import time
from detectron2.engine import TrainerBase
from gnws_d2.engine import StopOnSignal
class Slow(TrainerBase):
    def run_step(self):
        print("running", flush=True)
        time.sleep(100)
trainer = Slow()
trainer.register_hooks([StopOnSignal(None)])
trainer.train(0, 9)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(tmp_path, number):
    program, out = tmp_path / "slow.py", tmp_path / "out"
    program.write_text(SLOW_STEP)
    process = start(program, stdout=str(out))
    wait_for(lambda: out.exists() and "running" in out.read_text(), process)
    for _ in range(2):  # as a terminal and a launcher send it
        os.kill(process.pid, number)
    time.sleep(1.2)
    assert process.is_alive()
    os.kill(process.pid, number)
    process.join(5)
    assert process.exitcode == -number


ENDLESS = ["SOLVER.MAX_ITER", "100000"]


def test_processes_end_when_their_launcher_is_killed(steps, tmp_path):
    process = started(tmp_path, [*steps, *ENDLESS], "--num-gpus=2")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not processes_of(process.pid), seconds=60)
    assert "Stopped by SIGTERM after iteration" in (tmp_path / "run" / "log.txt").read_text()


def test_torchrun_passes_a_signal_on(tmp_path):
    output = tmp_path / "out"
    words = [str(word) for word in command(output, *STEPS, *ENDLESS, program=TRAIN_NET)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*launcher, *words], **quiet)
    wait_for((output / "last_checkpoint").exists)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert "Stopped by SIGTERM" in (output / "log.txt").read_text()
    saved = output / (output / "last_checkpoint").read_text()
    assert f"{saved.name} in" in (output / "log.txt").read_text()
