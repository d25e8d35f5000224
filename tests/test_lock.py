"""A lock names its holder, and is not waited for for ever."""

import os
import signal
import socket

import pytest
from processes import start

from gnws_d2 import lock
from gnws_d2.lock import LockError, locked

HOLD = """
import sys, time
from pathlib import Path
from gnws_d2.lock import locked
with locked(Path(sys.argv[1]), 1.0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_it_is_free_again_and_says_nothing_then(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "lock", 1.0):
            holder = (tmp_path / "lock.holder").read_text()
            assert holder == f"process {os.getpid()} on {socket.gethostname()}"
        assert not (tmp_path / "lock.holder").exists()


def test_who_holds_it_is_said_at_the_limit_and_a_killed_holder_frees_it(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    (tmp_path / "hold.py").write_text(HOLD)
    out = tmp_path / "out"
    process = start(tmp_path / "hold.py", tmp_path / "lock", stdout=str(out))
    while not out.exists() or "held" not in out.read_text():
        process.join(0.02)
    holder = f"process {process.pid} on {socket.gethostname()}"
    with (
        pytest.raises(LockError, match=rf"lock is held by {holder}, for more than 0\.3 s"),
        locked(tmp_path / "lock", 0.3),
    ):
        pass
    assert f"Waiting for {holder}" in caplog.text
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(tmp_path / "lock", 1.0):
        pass
