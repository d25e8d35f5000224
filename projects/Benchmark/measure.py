"""Time, memory and launches of a step, and how sure a ratio of times is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]
SHORTEST = 0.01  # seconds that are timed at once, at least: the clock's own noise is microseconds


class Ratio(NamedTuple):
    """A median over the rounds, and the bounds of its 95% interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Subject:
    """One variant, ready to run: its step, what holds its parameters, what it was checked to."""

    step: Step
    model: nn.Module | None
    errors: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Variants that are timed together.

    Attributes:
        what: is run.
        base: the name of the variant whose times the others' are divided by.
        subjects: the variants by name.
        count: how often the model has this operation.
    """

    what: str
    base: str
    subjects: dict[str, Subject]
    count: int = 1


def paired_times(steps: Mapping[str, Step], rounds: int, device: str) -> dict[str, np.ndarray]:
    """The seconds of each step in each round: one process, in a random order, which the next round
    reverses (A/B/B/A), so that a drift cancels. All are warmed up first. Short steps are run
    several times, and their mean is taken."""
    rng = np.random.default_rng(0)
    shortest = min(seconds(step, device) for step in steps.values())
    if shortest < 1:  # of which the warming up may be the larger part
        shortest = min(seconds(step, device) for step in steps.values())
    repeats = max(1, round(SHORTEST / shortest))
    times = {name: np.empty(rounds) for name in steps}
    order: list[str] = []
    for i in range(rounds):
        order = order[::-1] if i % 2 else list(rng.permutation(list(steps)))
        for name in order:
            times[name][i] = seconds(steps[name], device, repeats)
    return times


def seconds(step: Step, device: str, repeats: int = 1) -> float:
    """How long a step takes until its last kernel has ended; the mean of ``repeats``."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def ratio(times: np.ndarray, base: np.ndarray) -> Ratio:
    """The median of the paired ratios ``times / base``, with a bootstrap interval."""
    ratios = np.asarray(times) / np.asarray(base)
    samples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def memory(step: Step, model: nn.Module | None, device: str) -> int:
    """The bytes at the peak of a step: what is allocated in it, gradients and standardized weights
    included, and the tensors of ``model``, but not those of other variants. On a GPU as its
    allocator counts, on the CPU as torch's profiler does."""
    if model is not None:
        model.zero_grad(set_to_none=True)
        model.train(model.training)  # drops standardized weights that were kept
    with allocated(device) as meter:
        step()
    return meter.peak + _held(model)


class Meter:
    """Bytes allocated in a block of code, less those freed: ``now``, and their ``peak``."""

    now = peak = 0


@contextmanager
def allocated(device: str) -> Iterator[Meter]:
    """Count what is allocated in a block of code; the figures are there after it."""
    meter = Meter()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield meter
        torch.cuda.synchronize()
        meter.now = torch.cuda.memory_allocated() - before
        meter.peak = torch.cuda.max_memory_allocated() - before
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield meter
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        meter.now += event.nbytes()
        meter.peak = max(meter.peak, meter.now)


def launches(step: Step, device: str) -> int | None:
    """The kernels that a step launches on the GPU; None on the CPU."""
    if torch.device(device).type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    return sum(
        event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in profiled.events()
    )


def _held(model: nn.Module | None) -> int:
    tensors = [*model.parameters(), *model.buffers()] if model is not None else []
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
