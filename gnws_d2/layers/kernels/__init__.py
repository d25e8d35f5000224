"""GroupNorm + ReLU, forward and backward, twice with the same arguments: ``forward`` and
``backward`` in Triton, and in ``stock`` by torch's own kernels. Here it is decided which one runs.

This module and ``stock`` need torch alone; the other two are imported where they run.
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


def enabled() -> bool:
    """Whether Triton's kernels may run in this process: it is installed, and GNWS_D2_KERNELS is not
    "torch".

    Raises:
        ValueError: GNWS_D2_KERNELS is neither "auto" nor "torch".
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in ("auto", "torch"):
        raise ValueError(
            f'{VARIABLE} is {choice!r}. Set it to "auto" (Triton\'s kernels on a GPU) or to '
            '"torch" (torch\'s everywhere).'
        )
    return choice == "auto" and _triton_is_installed()


def available(x: torch.Tensor) -> bool:
    """Whether Triton's kernels take ``x``, (N, C, *), and are expected to be faster on it."""
    on_gpu = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"  # the latter to test them
    fits = (
        on_gpu
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.numel() >= max(MIN_ELEMENTS, 1)
        and x[0].numel() < MAX_ELEMENTS_OF_IMAGE
    )
    chosen = fits and enabled()
    _log_path("Triton" if chosen else "torch", x.device.type)
    return chosen


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache  # once each
def _log_path(path: str, device: str) -> None:
    logger.info("GroupNorm + ReLU on %s by the kernels of %s", device, path)
