"""Times are taken in pairs, intervals are those of the median, memory is counted once."""

import numpy as np
import pytest
import torch
from measure import memory, paired_times, ratio
from torch import nn


def test_the_interval_is_that_of_the_median():
    """Of 101 values the median's 95% interval lies 0.98 x sqrt(101) = 9.8 ranks to either side."""
    ratios = np.random.default_rng(1).permutation(np.arange(1.0, 102.0))
    median, low, high = ratio(ratios * 3, np.full(101, 3.0))
    assert median == pytest.approx(51)
    assert low == pytest.approx(51 - 9.8, abs=1.5) and high == pytest.approx(51 + 9.8, abs=1.5)


def test_every_step_is_run_in_every_round(monkeypatch):
    monkeypatch.setattr("measure.SHORTEST", 0.0)
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = paired_times(steps, 20)
    assert {name: t.shape for name, t in times.items()} == dict.fromkeys("abc", (20,))
    assert all((t > 0).all() for t in times.values())
    rounds = [tuple(order[i : i + 3]) for i in range(6, 66, 3)]  # before that, twice to warm up
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3  # the order changes
    assert all(a == b[::-1] for a, b in zip(rounds[::2], rounds[1::2], strict=True))


def test_memory_is_the_peak_and_what_the_model_holds():
    model = nn.Linear(1000, 1000, bias=False)  # 4 MB
    x = torch.randn(500, 1000)  # there before

    def step():
        y = model(x)  # 2 MB
        z = y.exp()  # 2 MB, kept for backward
        del y
        z.sum().backward()  # the gradients of z and y, 2 MB each, then of the weight, 4 MB

    step()  # leaves a gradient, which is not there when it begins
    peak = memory(step, model, "cpu")
    assert peak == memory(step, model, "cpu")  # repeatable
    assert 4e6 + 6e6 <= peak < 4e6 + 8.5e6
