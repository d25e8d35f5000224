"""How launching fails: processes that do not find, or lose, each other."""

import re
import socket

import pytest
from processes import run

# Two processes; argv[1] says what happens in the second.
PROGRAM = """
import os, sys, time
from datetime import timedelta
import torch.distributed as dist
from detectron2.utils import comm
from gnws_d2.engine import launch
from gnws_d2.engine.launch import limit_waiting
def main(what, seconds):
    limit_waiting(seconds)
    if comm.get_rank() == 1:
        if what == "hang":
            time.sleep(20)
        if what == "die":
            os._exit(3)
        raise ValueError("the cause")
    dist.barrier()
if __name__ == "__main__":
    what, url, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    launch(main, 2, dist_url=url, args=(what, seconds), timeout=timedelta(seconds=START))
"""
pytestmark = pytest.mark.slow


def launched(tmp_path, what="fail", url="auto", start=60, seconds=30):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("START", str(start)))
    return run(program, what, url, seconds)


LOST = "error: Lost contact with another process ("
DIED = "error: Without an error of its own, process 1 terminated with exit code 3. SIGKILL often"


@pytest.mark.parametrize(
    ("what", "seconds", "said"),
    # Of a death the launcher may know first, or the process that waits.
    [("hang", 4, (LOST,)), ("die", 60, (LOST, DIED))],
)
def test_a_lost_process_is_an_error_that_says_what_to_check(tmp_path, what, seconds, said):
    done = launched(tmp_path, what, seconds=seconds)  # without a limit, "hang" ends well
    assert done.returncode == 1
    # Gloo's own lines begin like "[E1124 17:53:33.820000 ...".
    errors = [line for line in done.stderr.splitlines() if not re.match(r"\[?[WE]\d{4} ", line)]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(said)
    if errors[0].startswith(LOST):
        assert "GLOO_SOCKET_IFNAME" in errors[0] and "PROCESS_TIMEOUT" in errors[0]


def test_the_error_of_a_process_is_shown_and_not_that_it_is_gone(tmp_path):
    done = launched(tmp_path)
    assert done.returncode == 1
    assert "ValueError: the cause" in done.stderr and "Lost contact" not in done.stderr


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = launched(tmp_path, url=url, start=5)
    assert done.returncode == 1
    assert f"error: The port of --dist-url {url} is in use" in done.stderr, done.stderr
