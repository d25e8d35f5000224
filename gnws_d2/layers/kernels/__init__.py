"""Kernels in Triton, and here the decision where they run instead of torch's.

GroupNorm + ReLU: ``forward`` and ``backward``, and with the same arguments in ``stock`` by torch's
own kernels. Weight Standardization: ``standardize``, and by torch's in
``gnws_d2/layers/weight_standardization.py``.

This module and ``stock`` need torch alone; the others are imported where they run.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch

logger = logging.getLogger(__name__)

VARIABLE = "GNWS_D2_KERNELS"
# Below this number of elements torch's kernels run. A guess: on a small input the launches are what
# costs, and Triton's take longer on the CPU. Where the two cross has not been measured yet.
MIN_ELEMENTS = 2**16
# Offsets within one image are computed in 32 bits.
MAX_ELEMENTS_OF_IMAGE = 2**31


def run_on(device: torch.device) -> bool:
    """Whether Triton's kernels run there: GNWS_D2_KERNELS is not "torch", and Triton is installed
    and works.

    Raises:
        ValueError: GNWS_D2_KERNELS is neither "auto" nor "torch".
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in ("auto", "torch"):
        raise ValueError(
            f'{VARIABLE} is {choice!r}. Set it to "auto" (Triton\'s kernels on a GPU) or to '
            '"torch" (torch\'s everywhere).'
        )
    return choice == "auto" and _works(device)


def take_map(x: torch.Tensor) -> bool:
    """Whether GroupNorm + ReLU of ``x``, (N, C, *), is Triton's: its kernels can do it, and are
    expected to be faster."""
    large = x.numel() >= max(MIN_ELEMENTS, 1) and x[0].numel() < MAX_ELEMENTS_OF_IMAGE
    return _choose("GroupNorm + ReLU", x, large)


def take_weight(weight: torch.Tensor) -> bool:
    """Whether the standardization of ``weight``, (C_out, ...), in training is Triton's."""
    # Tensors of other classes may have no memory that a kernel could be given.
    plain = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return _choose("Weight Standardization in training", weight, plain and weight.numel() > 0)


def _choose(operation: str, x: torch.Tensor, fits: bool) -> bool:
    on_gpu = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"  # the latter to test them
    of_a_type = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    chosen = on_gpu and of_a_type and fits and run_on(x.device)
    _log_path(operation, x.device.type, "Triton" if chosen else "torch")
    return chosen


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether Triton is installed, and a kernel of it computes there what torch does. To build one
    it takes a GPU that it knows and, the first time, a C compiler."""
    if importlib.util.find_spec("triton") is None:
        return False
    weight = torch.linspace(-1, 1, 600, device=device).view(2, 300)
    try:
        from .standardize import standardize

        found, _, std = standardize(weight, 1e-5, torch.float32)
        torch.testing.assert_close(found, (weight - weight.mean(1, True)) / (std + 1e-5))
        torch.testing.assert_close(std, weight.std(1, keepdim=True))
    except Exception as error:  # the compiler's, the linker's, the driver's: they have no base
        logger.warning(
            "Triton's kernels do not run on %s, so torch's will, which take longer: %s: %s. It "
            "needs a C compiler (gcc or clang) and a GPU that it supports. %s=torch in the "
            "environment chooses torch's without this message.",
            *(device, type(error).__name__, error, VARIABLE),
        )
        return False
    return True


@functools.cache  # once each
def _log_path(operation: str, device: str, path: str) -> None:
    logger.info("%s on %s by the kernels of %s", operation, device, path)
