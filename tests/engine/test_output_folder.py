"""One run at a time in an output folder."""

import os
import signal
import time

import pytest
from processes import run, start

from gnws_d2.engine import locked_output, output_folder
from gnws_d2.engine.output_folder import OutputFolderError, lock_output

HOLD = """
import sys, time
from torch.utils.data import DataLoader
from gnws_d2.engine import lock_output
from gnws_d2.engine.resume import start_worker
lock_output(sys.argv[1])
options = {"multiprocessing_context": "fork", "worker_init_fn": start_worker}
loader = iter(DataLoader(range(9), num_workers=1, **options))
next(loader)  # the worker has the lock's file open as well
print("held", flush=True)
time.sleep(100)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path, monkeypatch):
    program, out = tmp_path / "hold.py", tmp_path / "out"
    program.write_text(HOLD)
    process = start(program, tmp_path / "run", stdout=str(out))
    while not out.exists() or "held" not in out.read_text():
        assert process.is_alive()
        time.sleep(0.05)
    monkeypatch.setattr(output_folder, "PATIENCE", 0.1)
    with pytest.raises(
        OutputFolderError, match=rf"another run, process {process.pid} on \S+\. Wait"
    ):
        lock_output(tmp_path / "run")
    with locked_output(tmp_path / "other"):
        pass
    monkeypatch.undo()
    os.kill(process.pid, signal.SIGKILL)
    with locked_output(tmp_path / "run"):
        pass
    process.join()


def test_a_command_says_who_holds_the_folder(tmp_path, monkeypatch):
    train_net = os.path.join(os.path.dirname(__file__), "../../projects/Detection/train_net.py")
    config = ["--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "OUTPUT_DIR", tmp_path]
    with locked_output(tmp_path):
        done = run(train_net, *config)
    assert done.returncode == 1
    assert f"in use by another run, process {os.getpid()} on" in done.stderr
    assert len(done.stdout.splitlines() + done.stderr.splitlines()) <= 3, done.stdout + done.stderr


def test_the_process_that_holds_it_asks_as_often_as_it_likes(tmp_path):
    with locked_output(tmp_path), locked_output(tmp_path):
        lock = lock_output(tmp_path)
        assert lock is not None and lock.is_locked
    lock.release()
    assert not lock.is_locked
