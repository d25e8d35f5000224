"""Start a program in several processes, with or without torchrun, on GPUs or on the CPU."""

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model as detectron2_create_ddp_model
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from ..errors import EXPECTED, GnwsError, is_debugging, not_logged, one_line, one_line_errors
from .hooks import SIGNALS

# How torch and gloo say that a process waited in vain, or that one it talked to is gone.
_LOST = (
    *("Timed out waiting", "Connection closed by peer", "Connection reset by peer"),
    *("Broken pipe", "Socket Timeout", "timed out after", "collective operation timeout"),
)
_REPORTED = "error_reported"  # a file with the error of the first process that fails


def launch(
    main_func: Callable[..., object],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
    device: Callable[[], str] = lambda: "cuda",
) -> None:
    """``detectron2.engine.launch``, with the same arguments, also under torchrun and on the CPU.

    Under torchrun its environment counts, not the arguments. On the CPU, N processes share the
    cores, unless OMP_NUM_THREADS is set. An expected error ends all with one line on stderr; see
    :func:`~gnws_d2.errors.one_line_errors`. They get SIGINT and SIGTERM, and end with this one.

    Args:
        timeout: how long a process waits for the others, to start and later; by default 30 minutes.
        device: returns MODEL.DEVICE; asked where several processes meet a GPU. "cpu" hides it.

    Raises:
        GnwsError: there are fewer than one process or more than GPUs, or they did not find or lost
            each other.
    """
    is_torchrun = dist.is_torchelastic_launched()
    processes = int(os.environ["LOCAL_WORLD_SIZE"]) if is_torchrun else num_gpus_per_machine
    with one_line_errors(), tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        if not is_torchrun:
            _check_world(num_gpus_per_machine, num_machines, machine_rank, dist_url)
            if num_machines * processes == 1:
                main_func(*args)
                return
        gpus = torch.cuda.device_count()  # unlike is_available, starts no CUDA in this process
        if gpus and device() == "cpu":
            # Where one is seen, NCCL is taken for a model on the CPU, too: by Detectron2's launch.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
            undo.callback(os.environ.update, CUDA_VISIBLE_DEVICES=visible)
            os.environ["CUDA_VISIBLE_DEVICES"], gpus = "", 0
        if 0 < gpus < processes:
            raise GnwsError(
                f"{processes} processes need a GPU each, but this machine has {gpus}. Use "
                f"--num-gpus {gpus} (or torchrun --nproc_per_node {gpus}), or MODEL.DEVICE cpu."
            )
        if is_torchrun:
            try:
                _join_torchrun("nccl" if gpus else "gloo", processes, timeout)
            except dist.DistError as error:
                raise _not_found("the address of torchrun", timeout, error) from error
            # The folder in which the processes that torchrun starts on this machine write errors.
            file = os.environ.get("TORCHELASTIC_ERROR_FILE")
            _run(main_func, args, Path(file).parents[1] if file else Path(folder))
        else:
            world = (num_gpus_per_machine, num_machines, machine_rank, dist_url)
            _start(world, (main_func, args, Path(folder)), timeout)


def _check_world(per_machine: int, machines: int, rank: int, url: str | None) -> None:
    has_url, of = machines <= 1 or url not in (None, "auto"), f"for --num-machines {machines}"
    for flag, value, is_usable, fix in (
        ("--num-gpus", per_machine, per_machine > 0, "1 or more; without a GPU, of CPU processes"),
        ("--num-machines", machines, machines > 0, "1 or more"),
        ("--machine-rank", rank, 0 <= rank < machines, f"0 to {machines - 1} {of}"),
        ("--dist-url", url, has_url, f"tcp://ADDRESS:PORT of machine 0, on each, {of}"),
    ):
        if not is_usable:
            raise GnwsError(f"{flag} is {value}. Set it to {fix}.")


def _start(world: tuple, main: tuple, timeout: timedelta) -> None:
    """Call ``_run(*main)`` in processes, pass signals on to them, which end by themselves, and say
    why they failed."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in mp.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, number)

    # It warns that it ends the other processes when one has failed.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    former = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        detectron2_launch(_run, *world, args=main, timeout=timeout)
    except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
        if received:
            raise SystemExit(128 + received[0]) from None
        reported = main[2] / _REPORTED
        if reported.exists():  # printed when all have ended: nothing is said below it
            raise SystemExit(reported.read_text(encoding="utf-8").rstrip()) from None
        if isinstance(error, mp.ProcessExitedException):
            raise GnwsError(
                f"Without an error of its own, {error}. SIGKILL often means that memory ran out, "
                "SIGABRT on GPUs that SOLVER.PROCESS_TIMEOUT passed. See above, and log.txt.rankN."
            ) from error
        if "init_process_group" in str(error):
            raise _not_found(f"--dist-url {world[3]}", timeout, error) from error
        raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _run(main_func: Callable[..., object], args: tuple, folder: Path) -> None:
    """Run ``main_func`` in one of several processes, of which only the first that fails reports its
    error: the others may then fail in any way.

    Args:
        folder: of the report, shared by the processes of this machine.
    """
    _prctl_pr_set_pdeathsig(signal.SIGTERM)  # when the process that started this one is killed
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback, until training handles it
    if dist.get_backend() == "gloo" and "OMP_NUM_THREADS" not in os.environ:
        # Each process would start as many threads as there are cores, and all would wait.
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    reported = folder / _REPORTED
    try:
        with not_logged(lambda e: isinstance(e, EXPECTED) or _is_lost(e) or reported.exists()):
            main_func(*args)
    except Exception as error:
        if is_debugging():
            raise
        if _is_lost(error):
            error = GnwsError(
                f"Lost contact with another process ({str(error).splitlines()[0]}). See in its "
                "output and log.txt.rankN why it ended or hangs. Between machines, check the link, "
                "and that GLOO_SOCKET_IFNAME (on GPUs NCCL_SOCKET_IFNAME) names its network "
                "interface. SOLVER.PROCESS_TIMEOUT (train.process_timeout, of a LazyConfig) sets "
                "how many seconds a process waits."
            )
        text = one_line(error) if isinstance(error, EXPECTED) else traceback.format_exc()
        with suppress(FileExistsError), reported.open("x", encoding="utf-8") as stream:
            stream.write(text)
            if dist.is_torchelastic_launched():
                print(text.rstrip(), file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        # After the report: another process fails as soon as this one leaves the group.
        dist.destroy_process_group()


def _is_lost(error: BaseException | None) -> bool:
    is_of_file = isinstance(error, (GnwsError, OSError))
    return not is_of_file and any(sign in str(error) for sign in _LOST)


def _not_found(address: str, timeout: timedelta, error: Exception) -> GnwsError:
    """What to say of processes that do not find each other."""
    text = str(error)
    if "EADDRINUSE" in text or "address already in use" in text:
        return GnwsError(
            f"The port of {address} is in use, perhaps by another run. Wait for it, or choose "
            "another; --dist-url auto finds one for the processes of one machine."
        )
    return GnwsError(
        f"The processes did not find each other at {address} within {timeout}. Check that it is "
        "the address of machine 0, that its port can be reached, and that all machines were "
        "started, each with its own rank."
    )


def _join_torchrun(backend: str, processes: int, timeout: timedelta) -> None:
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun may keep its store when it restarts processes, with the addresses of the old ones.
    store = dist.PrefixStore(f"gnws_d2/{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    comm.create_local_process_group(processes)


def create_ddp_model(model: nn.Module, **options: Any) -> nn.Module:
    """``detectron2.engine.create_ddp_model``, which always passes ``device_ids``, for models on the
    CPU as well, where DistributedDataParallel refuses them."""
    if next(model.parameters()).device.type == "cpu":
        options.setdefault("device_ids", None)
    return detectron2_create_ddp_model(model, **options)
