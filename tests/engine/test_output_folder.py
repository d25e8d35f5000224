"""One run at a time in an output folder."""

import os
import signal
import time
from pathlib import Path

import pytest
from processes import run, start

from gnws_d2 import files
from gnws_d2.engine import locked_output
from gnws_d2.errors import FileError

PROGRAMS = Path(__file__).parents[2] / "projects" / "Detection"
HOLD = """
import sys, time
from torch.utils.data import DataLoader
from gnws_d2.engine import locked_output
from gnws_d2.engine.data_order import start_worker
with locked_output(sys.argv[1]):
    options = {"multiprocessing_context": "fork", "worker_init_fn": start_worker}
    loader = iter(DataLoader(range(9), num_workers=1, **options))
    next(loader)  # the worker has the lock's file open as well
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    program, out = tmp_path / "hold.py", tmp_path / "out"
    program.write_text(HOLD)
    process = start(program, tmp_path / "run", stdout=str(out))
    while not out.exists() or "held" not in out.read_text():
        assert process.is_alive()
        time.sleep(0.05)
    monkeypatch.setattr(files, "_KILLED", 0.1)
    said = rf"held by process {process.pid} on \S+, for more than 0\.1 s\. Another run uses"
    with pytest.raises(FileError, match=said), locked_output(tmp_path / "run"):
        pass
    assert f"Waiting for process {process.pid} on" in caplog.text
    with locked_output(tmp_path / "other"):
        pass
    monkeypatch.undo()
    os.kill(process.pid, signal.SIGKILL)
    with locked_output(tmp_path / "run"), locked_output(tmp_path / "run"):  # as often as it likes
        pass
    process.join()


@pytest.mark.parametrize("program", ["train_net.py", "lazyconfig_train_net.py"])
def test_a_command_says_who_holds_the_folder_and_changes_nothing_when_it_is_refused(
    program, tmp_path
):
    words = ["--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "OUTPUT_DIR", tmp_path]
    if program.startswith("lazy"):
        words = ["--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.py", "train.device=cpu"]
        words += [f"train.output_dir={tmp_path}"]
    words = [PROGRAMS / program, "--resume", *words]
    (tmp_path / "config.yaml").write_text("of the run")
    (tmp_path / "model_0000001.pth").touch()
    refused = run(*words)
    assert "last_checkpoint is missing" in refused.stderr and refused.returncode == 1
    if not program.startswith("lazy"):
        with locked_output(tmp_path):
            held = run(*words)
        assert held.returncode == 1 and f"held by process {os.getpid()} on" in held.stderr
        assert len((held.stdout + held.stderr).splitlines()) <= 3, held.stdout + held.stderr
    assert (tmp_path / "config.yaml").read_text() == "of the run"
