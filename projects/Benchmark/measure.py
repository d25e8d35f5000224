"""Time and memory of a step, and the uncertainty of a ratio of times."""

import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer  # waits for the GPU before it reads the clock

Step = Callable[[], object]
SHORTEST = 0.01  # seconds to time at once, at least: the clock's own noise is microseconds


def paired_times(
    steps: Mapping[str, Step], rounds: int, warm_up: bool = True
) -> dict[str, np.ndarray]:
    """The seconds of each step in each round.

    All steps run in one process, in a random order that the next round reverses (A/B/B/A), so that
    drift cancels. Short steps are repeated, and their mean is taken.
    :class:`torch.utils.benchmark.Timer` would warm up again before each of these measurements.
    With ``warm_up``, each is run twice before; steps that are warm and long need neither that nor
    repeats.
    """
    rng = np.random.default_rng(0)
    repeats = 1
    if warm_up:
        for step in steps.values():
            step()
        shortest = min(seconds(step) for step in steps.values())
        repeats = max(1, round(SHORTEST / shortest))
    times = {name: np.empty(rounds) for name in steps}
    order: list[str] = []
    for i in range(rounds):
        order = order[::-1] if i % 2 else list(rng.permutation(list(steps)))
        for name in order:
            times[name][i] = seconds(steps[name], repeats)
    return times


def seconds(step: Step, repeats: int = 1) -> float:
    """How long a step takes until its last kernel has ended; the mean of ``repeats``."""
    return timeit.Timer(step, timer=timer).timeit(repeats) / repeats


def ratio(times: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """The median of the paired ratios ``times / base``, and its 95% bootstrap interval."""
    ratios = np.asarray(times) / np.asarray(base)
    samples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def memory(step: Step, model: nn.Module, device: str) -> int:
    """The bytes at the peak of a step: what it allocates, with gradients and standardized weights,
    and the tensors of ``model``, but not those of other variants."""
    model.zero_grad(set_to_none=True)
    model.train(model.training)  # drops standardized weights that were kept
    with allocated(device) as meter:
        step()
    storages = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
    return meter.peak + sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@contextmanager
def allocated(device: str) -> Iterator[SimpleNamespace]:
    """Count the bytes allocated in a block of code, less those freed: ``now``, and their ``peak``,
    set when the block ends. On a GPU its allocator counts, on the CPU torch's profiler."""
    meter = SimpleNamespace(now=0, peak=0)
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
