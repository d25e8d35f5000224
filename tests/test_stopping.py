"""Real signals to ``train_net.py``, in one process and in two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import run, start
from test_train_net import make_command, weights
from tiny import FEW_PROPOSALS

pytestmark = pytest.mark.slow

STEPS = [
    *(*FEW_PROPOSALS, "DATASETS.TEST", "()", "INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
    *(
        "SOLVER.CHECKPOINT_PERIOD",
        "3",
        "SOLVER.LR_SCHEDULER_NAME",
        "WarmupMultiStepLR",
        "DATALOADER.NUM_WORKERS",
        "1",
    ),
]


def wait_for(condition, process=None, seconds=300):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it took too long"
        assert process is None or process.is_alive(), "it ended early"
        time.sleep(0.05)


def started(command, folder, *flags):
    """A training without end in folder/run, once it has saved a checkpoint."""
    words = [*STEPS, "SOLVER.MAX_ITER", "100000", "OUTPUT_DIR", folder / "run"]
    out, err = str(folder / "out"), str(folder / "err")
    process = start(*command(*flags, *words), stdout=out, stderr=err)
    wait_for((folder / "run" / "last_checkpoint").exists, process)
    return process


def processes_of(group: int) -> list[int]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,pgid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and state[0] != "Z"]


def stop(process, number: int, whole_group: bool, folder: Path) -> int:
    """Send the signal, and return the iteration of the checkpoint that it saved."""
    (os.killpg if whole_group else os.kill)(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number, (folder / "err").read_text()
    wait_for(lambda: not processes_of(process.pid), seconds=10)
    said = (folder / "out").read_text() + (folder / "err").read_text()
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
    "SIGINT, the group of two processes": (["--num-gpus=2"], signal.SIGINT, True),
}


@pytest.mark.parametrize(("flags", "number", "whole_group"), CASES.values(), ids=CASES)
def test_a_signal_saves_a_checkpoint(digits, tmp_path, flags, number, whole_group):
    process = started(make_command(tmp_path, digits), tmp_path, *flags)
    stop(process, number, whole_group, tmp_path)


@pytest.mark.parametrize("flags", [[], ["--num-gpus=2"]], ids=["one process", "two processes"])
def test_a_run_that_was_stopped_resumes_to_the_result_of_an_unbroken_one(digits, tmp_path, flags):
    command, unbroken = make_command(tmp_path, digits), tmp_path / "unbroken"
    broken = tmp_path / "run"
    iteration = stop(started(command, tmp_path, *flags), signal.SIGTERM, False, tmp_path)
    for output, more in ((broken, ["--resume"]), (unbroken, [])):
        words = [*flags, *more, *STEPS, "SOLVER.MAX_ITER", iteration + 4, "OUTPUT_DIR", output]
        done = run(*command(*words))
        assert done.returncode == 0, done.stderr
    assert f"from iteration {iteration + 1}" in (broken / "log.txt").read_text()
    a, b = weights(broken), weights(unbroken)
    assert all(torch.equal(a[name], b[name]) for name in a)


SLOW_STEP = """
import time
from detectron2.engine import TrainerBase
from gnws_d2.engine.stopping import StopOnSignal
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


def test_processes_end_when_their_launcher_is_killed(digits, tmp_path):
    process = started(make_command(tmp_path, digits), tmp_path, "--num-gpus=2")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not processes_of(process.pid), seconds=60)
    assert "Stopped by SIGTERM after iteration" in (tmp_path / "run" / "log.txt").read_text()


def test_torchrun_passes_a_signal_on(digits, tmp_path):
    output = tmp_path / "out"
    words = make_command(tmp_path, digits)(
        *STEPS, "SOLVER.MAX_ITER", "100000", "OUTPUT_DIR", output
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [*launcher, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for((output / "last_checkpoint").exists)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert "Stopped by SIGTERM" in (output / "log.txt").read_text()
    saved = output / (output / "last_checkpoint").read_text()
    assert f"{saved.name} in" in (output / "log.txt").read_text()
