"""Kernels in Triton, and here the decision where they run instead of torch's.

GroupNorm + ReLU: ``forward`` and ``backward``, and with the same arguments in ``stock`` by torch's
own kernels. Weight Standardization: ``standardize``, and by torch's in
``gnws_d2/layers/weight_standardization.py``.

This module, ``stock`` and ``layout`` need torch alone; the others are imported where they run.
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
# Offsets within one image are computed in 32 bits, and images are an axis of CUDA's grid.
MAX_ELEMENTS_OF_IMAGE = 2**31
MAX_IMAGES = 2**16 - 1

MAP = "GroupNorm + ReLU"
WEIGHT = "Weight Standardization in training"


def run_on(operation: str, device: torch.device) -> bool:
    """Whether Triton's kernels of an operation (``MAP`` or ``WEIGHT``) run there: GNWS_D2_KERNELS
    is not "torch", and Triton is installed and works.

    Raises:
        ValueError: GNWS_D2_KERNELS is neither "auto" nor "torch".
    """
    return _allowed() and _works(operation, device)


def take_map(x: torch.Tensor) -> bool:
    """Whether GroupNorm + ReLU of ``x``, (N, C, *), is Triton's: its kernels can do it, and are
    expected to be faster."""
    large = x.numel() >= max(MIN_ELEMENTS, 1)
    fits = large and x[0].numel() < MAX_ELEMENTS_OF_IMAGE and len(x) <= MAX_IMAGES
    return _choose(MAP, x, fits)


def take_weight(weight: torch.Tensor) -> bool:
    """Whether the standardization of ``weight``, (C_out, ...), in training is Triton's."""
    # Tensors of other classes may have no memory that a kernel could be given.
    plain = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return _choose(WEIGHT, weight, plain and weight.numel() > 0)


def _choose(operation: str, x: torch.Tensor, fits: bool) -> bool:
    on_gpu = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"  # the latter to test them
    of_a_type = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    # Whether they are allowed comes first: a wrong word is an error without a GPU as well.
    chosen = _allowed() and on_gpu and of_a_type and fits and _works(operation, x.device)
    _log_path(operation, x.device.type, "Triton" if chosen else "torch")
    return chosen


def _allowed() -> bool:
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in ("auto", "torch"):
        raise ValueError(
            f'{VARIABLE} is {choice!r}. Set it to "auto" (Triton\'s kernels on a GPU) or to '
            '"torch" (torch\'s everywhere).'
        )
    return choice == "auto"


@functools.cache
def _works(operation: str, device: torch.device) -> bool:
    """Whether Triton is installed, and its kernels compute there what torch does. To build them it
    takes a GPU that it knows and, the first time, a C compiler."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        {MAP: _try_map, WEIGHT: _try_weight}[operation](device)
    except torch.OutOfMemoryError:
        raise  # says nothing about them
    except Exception as error:  # the compiler's, the linker's, the driver's: they have no base
        logger.warning(
            "Triton's kernels of %s do not run on %s, so torch's will, which take longer: %s: %s. "
            "It needs a C compiler (gcc or clang) and a GPU that it supports. %s=torch in the "
            "environment chooses torch's without this message.",
            *(operation, device, type(error).__name__, error, VARIABLE),
        )
        return False
    return True


def _try_map(device: torch.device) -> None:
    """Run all kernels on a small map. Raises AssertionError where torch's give something else."""
    from . import fused, stock

    x = torch.linspace(-1, 1, 1200, device=device, dtype=torch.float32).view(2, 6, 10, 10)
    weight = torch.linspace(0.5, 1, 6, device=device, dtype=torch.float32)
    bias = weight - 0.7
    ours, theirs = (k.forward(x, weight, bias, None, 3, 1e-5) for k in (fused, stock))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    _, mean, rstd = theirs
    grads = [k.backward(x, x, weight, bias, None, mean, rstd, 1e-5) for k in (fused, stock)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def _try_weight(device: torch.device) -> None:
    """The same of a small weight, by the formulas."""
    from . import standardize

    weight = torch.linspace(-1, 1, 600, device=device, dtype=torch.float32).view(2, 300)
    standardized, mean, std = standardize.standardize(weight, 1e-5, torch.float32)
    torch.testing.assert_close(mean, weight.mean(1, keepdim=True))
    torch.testing.assert_close(std, weight.std(1, keepdim=True))
    torch.testing.assert_close(standardized, (weight - mean) / (std + 1e-5))
    grad = weight.square()
    slope = (grad * standardized).sum(1, keepdim=True) / 299 / std
    expected = (grad - grad.mean(1, keepdim=True)) / (std + 1e-5) - standardized * slope
    found = standardize.weight_gradient(grad, weight, mean, std, 1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@functools.cache  # once each
def _log_path(operation: str, device: str, path: str) -> None:
    logger.info("%s on %s by the kernels of %s", operation, device, path)
