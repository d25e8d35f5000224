"""How launching fails: processes that do not find, or lose, each other."""

import re
import socket

import pytest
from processes import run

from gnws_d2.engine import launch

# Two processes, forked, without the time to import torch; argv[1] says what happens in them.
PROGRAM = """
import functools, os, signal, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from gnws_d2.engine import launch
from gnws_d2.projects.detection.defaults import limit_waiting
from gnws_d2.errors import ConfigError
mp.start_processes = functools.partial(mp.start_processes, start_method="fork")
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
def main(what, seconds):
    limit_waiting(seconds)
    if what == "refuse":
        raise ConfigError("not this value")
    if what == "fill":
        raise torch.OutOfMemoryError("CUDA out of memory. Of 8 GiB 1 is free. Including that")
    if what == "abort":  # as NCCL does
        os.kill(os.getpid(), signal.SIGABRT)
    if comm.get_rank() == 1:
        if what == "hang":
            time.sleep(20)
        if what == "die":
            os._exit(3)
        raise ValueError("the cause")
    dist.barrier()
what, url, seconds, start = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
how = {"timeout": timedelta(seconds=start), "device": lambda: "cpu"}
launch(main, 2, dist_url=url, args=(what, seconds), **how)
"""
pytestmark = pytest.mark.slow


def errors_of(tmp_path, what, seconds=30, url="auto", start=60) -> list[str]:
    """The lines that the program writes to stderr."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = run(program, what, url, seconds, start)
    assert done.returncode == 1
    # Gloo's own lines begin like "[E1124 17:53:33.820000 ...".
    return [line for line in done.stderr.splitlines() if not re.match(r"\[?[WE]\d{4} ", line)]


LOST = "error: Lost contact with another process ("
DIED = "error: Without an error of its own, process 1 terminated with exit code 3. SIGKILL often"
FULL = "error: CUDA out of memory. Of 8 GiB 1 is free. Set SOLVER.AMP.ENABLED True"
ABORTED = ("error: Without an error of its own, process ", " terminated with signal SIGABRT")


@pytest.mark.parametrize(
    ("what", "seconds", "said"),
    [
        ("hang", 2, (LOST,)),  # without a limit, it ends well
        # The launcher may know it first, or the process that waits.
        ("die", 60, (LOST, DIED)),
        ("refuse", 60, ("error: not this value",)),
        ("fill", 60, (FULL,)),
        ("abort", 60, ABORTED[:1]),
    ],
)
def test_processes_end_with_one_line_that_says_what_to_check(tmp_path, what, seconds, said):
    (error,) = errors_of(tmp_path, what, seconds)
    assert error.startswith(said)
    if error.startswith(LOST):
        assert "GLOO_SOCKET_IFNAME" in error and "PROCESS_TIMEOUT" in error
    if what == "abort":
        assert ABORTED[1] in error and "PROCESS_TIMEOUT" in error


def test_the_error_of_a_process_is_shown_and_not_that_it_is_gone(tmp_path):
    errors = errors_of(tmp_path, "fail")
    assert errors[0].startswith("Traceback") and errors[-1] == "ValueError: the cause"


@pytest.mark.parametrize(
    ("world", "said"),
    [
        ((0,), "--num-gpus is 0. Set it to 1 or more"),
        ((-1,), "--num-gpus is -1"),
        ((1, 0), "--num-machines is 0"),
        ((1, 2, 2, "tcp://h:1"), "--machine-rank is 2. Set it to 0 to 1 for --num-machines 2"),
        ((1, 2, 0, "auto"), "--dist-url is auto. Set it to tcp://"),
    ],
)
def test_processes_that_cannot_be_are_refused_by_their_flag(world, said):
    with pytest.raises(SystemExit, match=f"error: {said}"):
        launch(print, *world)


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        errors = errors_of(tmp_path, "fail", url=url, start=5)
    assert f"error: The port of --dist-url {url} is in use" in errors[-1]
