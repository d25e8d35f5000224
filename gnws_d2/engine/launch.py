"""Start a program in several processes, with or without torchrun, on GPUs or on the CPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model as detectron2_create_ddp_model
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn

from ..errors import GnwsError, one_line_errors

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
    :func:`~gnws_d2.errors.one_line_errors`.
    """
    if dist.is_torchelastic_launched():
        # Where the processes that torchrun starts on this machine write their errors.
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        reported = Path(file).parents[1] / _REPORTED if file else None
        with one_line_errors(reported_in=reported):
            _join_torchrun(timeout)
        _run(main_func, args, reported)
        return
    with tempfile.TemporaryDirectory() as folder, one_line_errors():
        _check_gpus(num_gpus_per_machine)
        reported = Path(folder) / _REPORTED
        if num_machines * num_gpus_per_machine == 1:
            main_func(*args)
            return
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
            if not reported.exists():
                raise
            # After all processes have ended: nothing is printed below it.
            raise SystemExit(reported.read_text(encoding="utf-8")) from None


def _run_spawned(
    main_func: Callable[..., object], args: tuple, reported: Path, processes: int
) -> None:
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
