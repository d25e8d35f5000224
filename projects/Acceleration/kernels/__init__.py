"""Where GroupNorm + ReLU runs on Triton's kernels, and where on torch's.

``torch_kernels`` and ``triton_kernels`` have the same functions: ``forward``, ``normalize`` and
``backward``. This module and ``torch_kernels`` need torch alone.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from types import ModuleType

import torch

from . import torch_kernels

logger = logging.getLogger(__name__)

VARIABLE = "GNWS_D2_KERNELS"
# Below this number of elements torch's kernels run. A guess: on a small input the launches
# dominate, and Triton's take longer on the CPU. Where the two cross has not been measured yet.
MIN_ELEMENTS = 2**16
# Offsets within one image are computed in 32 bits, and images are an axis of CUDA's grid.
MAX_ELEMENTS_OF_IMAGE = 2**31
MAX_IMAGES = 2**16 - 1


def kernels_for(x: torch.Tensor) -> ModuleType:
    """The module whose functions run on ``x``, (N, C, *): Triton's kernels where they can, and are
    expected to be faster."""
    large = x.numel() >= MIN_ELEMENTS
    fits = large and x[0].numel() < MAX_ELEMENTS_OF_IMAGE and len(x) <= MAX_IMAGES
    on_gpu = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"  # the latter to test them
    of_a_type = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    chosen = on_gpu and of_a_type and fits and triton_runs_on(x.device)
    _log_choice(x.device.type, "Triton" if chosen else "torch")
    if not chosen:
        return torch_kernels
    from . import triton_kernels  # imports Triton

    return triton_kernels


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels run there: GNWS_D2_KERNELS is not "torch", and Triton is installed
    and works."""
    return os.environ.get(VARIABLE) != "torch" and _works(device)


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether Triton is installed, and its kernels compute what torch's do on a small input.
    Compiling them takes a GPU that it supports and, the first time, a C compiler."""
    if importlib.util.find_spec("triton") is None:
        return False
    x = torch.linspace(-1, 1, 1200, device=device, dtype=torch.float32).view(2, 6, 10, 10)
    weight = torch.linspace(0.5, 1, 6, device=device, dtype=torch.float32)
    bias = weight - 0.7
    try:
        from . import triton_kernels

        both = (triton_kernels, torch_kernels)
        ours, theirs = (k.forward(x, weight, bias, None, 3, 1e-5) for k in both)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        _, mean, rstd = theirs
        grads = [k.backward(x, x, weight, bias, None, mean, rstd, 1e-5) for k in both]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except Exception as error:  # the compiler's, the linker's, the driver's: no common base class
        logger.warning(
            "Triton's kernels of GroupNorm + ReLU do not run on %s, so torch's slower ones will: "
            "%s: %s. Triton needs a C compiler (gcc or clang) and a GPU that it supports. Set "
            "%s=torch in the environment to choose torch's kernels without this message.",
            *(device, type(error).__name__, error, VARIABLE),
        )
        return False
    return True


@functools.cache  # once each
def _log_choice(device: str, whose: str) -> None:
    logger.info("GroupNorm + ReLU on %s runs on the kernels of %s", device, whose)
