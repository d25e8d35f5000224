"""Start a program in its processes, by itself or under torchrun, on GPUs or on the CPU."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process that ``args`` or torchrun asks for.

    Args:
        main: called once per process, with the process group and the device set up.
        args: of ``detectron2.engine.default_argument_parser``. Under torchrun its environment
            counts, not ``--num-gpus`` and ``--num-machines``. Without a GPU, ``--num-gpus N``
            starts N processes on the CPU, which share its cores.

    Raises:
        RuntimeError: more processes than GPUs are asked for on this machine.
    """
    if dist.is_torchelastic_launched():
        _join_torchrun()
        try:
            main(args)
        finally:
            dist.destroy_process_group()
        return
    _check_gpus(args.num_gpus)
    detectron2_launch(
        _run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(main, args),
    )


def _run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    if args.num_gpus > 1 and not torch.cuda.is_available():
        # Each process would start as many threads as there are cores, and all would wait.
        torch.set_num_threads(max(1, torch.get_num_threads() // args.num_gpus))
    try:
        main(args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_torchrun() -> None:
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    _check_gpus(local_size)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(local_size)


def _check_gpus(processes: int) -> None:
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and processes > gpus:
        raise RuntimeError(
            f"{processes} processes are asked for on a machine with {gpus} GPUs; each takes one. "
            f"Use --num-gpus {gpus} (or torchrun --nproc_per_node {gpus})."
        )
