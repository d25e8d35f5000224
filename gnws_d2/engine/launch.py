"""Start a program in several processes, with or without torchrun, on GPUs or on the CPU."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

from ..errors import GnwsError, is_debugging, one_line_errors
from .stopping import SIGNALS

_REPORTED = "error_reported"  # a file that the process that reports an error creates


class LaunchError(GnwsError, RuntimeError):
    """There are more processes on this machine than GPUs."""


def launch(
    main_func: Callable[..., object],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """``detectron2.engine.launch``, with the same arguments, also under torchrun and on the CPU.

    Under torchrun its environment counts, not the arguments. Without a GPU, N processes share the
    cores of the CPU. An expected error ends all processes with one line on stderr; see
    :func:`~gnws_d2.errors.one_line_errors`. SIGINT and SIGTERM are passed on to all processes,
    which also end when this one is killed.
    """
    if dist.is_torchelastic_launched():
        # Where the processes that torchrun starts on this machine write their errors.
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        reported = Path(file).parents[1] / _REPORTED if file else None
        _end_with_parent()
        with one_line_errors(reported_in=reported):
            _join_torchrun(timeout)
        _run(main_func, args, reported)
        return
    with tempfile.TemporaryDirectory() as folder, one_line_errors():
        _check_gpus(num_gpus_per_machine)
        reported = Path(folder) / _REPORTED
        if num_machines * num_gpus_per_machine == 1:
            try:
                main_func(*args)
            except KeyboardInterrupt:
                if is_debugging():
                    raise
                raise SystemExit(128 + signal.SIGINT) from None
            return
        with _signals_passed_on() as received:
            try:
                detectron2_launch(
                    _run_spawned,
                    num_gpus_per_machine,
                    num_machines=num_machines,
                    machine_rank=machine_rank,
                    dist_url=dist_url,
                    args=(main_func, args, reported, num_gpus_per_machine),
                    timeout=timeout,
                )
            except (mp.ProcessExitedException, mp.ProcessRaisedException):
                if received:
                    raise SystemExit(128 + received[0]) from None
                if not reported.exists():
                    raise
                # After all processes have ended: nothing is printed below it.
                raise SystemExit(reported.read_text(encoding="utf-8")) from None


@contextmanager
def _signals_passed_on() -> Iterator[list[int]]:
    """Yield the signals that the block received and passed on to the processes it started, which
    end by themselves."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # It warns of ending the slower ones.
        logging.getLogger(mp.spawn.__name__).setLevel(logging.ERROR)
        for child in mp.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, number)

    is_main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, receive) for number in SIGNALS if is_main}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """End this process, as SIGTERM ends it, when the one that started it is killed."""
    _prctl_pr_set_pdeathsig(signal.SIGTERM)


def _run_spawned(
    main_func: Callable[..., object], args: tuple, reported: Path, processes: int
) -> None:
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback, until training handles it
    if not torch.cuda.is_available():
        # Each process would start as many threads as there are cores, and all would wait.
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    _run(main_func, args, reported, is_relayed=True)


def _run(
    main_func: Callable[..., object], args: tuple, reported: Path | None, is_relayed: bool = False
) -> None:
    try:
        with one_line_errors(reported_in=reported, is_relayed=is_relayed):
            main_func(*args)
    finally:
        # After the report: another process fails as soon as this one leaves the group.
        dist.destroy_process_group()


def _join_torchrun(timeout: timedelta) -> None:
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    _check_gpus(local_size)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
    comm.create_local_process_group(local_size)


def _check_gpus(processes: int) -> None:
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and processes > gpus:
        raise LaunchError(
            f"{processes} processes need a GPU each, but this machine has {gpus}. "
            f"Use --num-gpus {gpus} (or torchrun --nproc_per_node {gpus})."
        )


def create_ddp_model(model: nn.Module, **options: Any) -> nn.Module:
    """``detectron2.engine.create_ddp_model``, which always passes ``device_ids``, for models on the
    CPU as well, where DistributedDataParallel refuses them."""
    if next(model.parameters()).device.type == "cpu":
        options.setdefault("device_ids", None)
    return detectron2_create_ddp_model(model, **options)
