"""The classifier: its data, its norms, and a training that a seed repeats."""

from dataclasses import replace

import classifier
import torch
from experiment import Job
from torch import nn
from torch.nn import functional as F

from gnws_d2.layers import BatchChannelNorm2d

JOB = Job("classifier", "GN+WS", batch=2, seed=0, images=48, reference_lr=0.1)


def test_the_order_of_images_is_that_of_the_seed_whatever_the_batch():
    def labels(batch: int, seed: int) -> list[int]:
        job = replace(JOB, batch=batch, seed=seed, images=2880)
        data = classifier.load("train")
        return torch.cat([labels for _, labels in classifier.batches(job, data)]).tolist()

    assert labels(1, seed=0) == labels(8, seed=0) != labels(8, seed=1)
    _, scans = classifier.load("train")
    epoch = torch.tensor(labels(8, seed=0)[: len(scans)])
    assert torch.bincount(epoch).equal(torch.bincount(scans))  # each scan once


def test_bn_forgets_its_running_statistics_and_bcn_keeps_its_estimates():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 3, 3) * 2 + 1
    for norm in (nn.BatchNorm2d(8), BatchChannelNorm2d(8, 2, estimate=True), nn.GroupNorm(2, 8)):
        before = norm.eval()(x)
        found = classifier.forget_running_statistics(nn.Sequential(norm))
        assert found == isinstance(norm, nn.BatchNorm2d)
        expected = F.batch_norm(x, None, None, training=True) if found else before
        torch.testing.assert_close(norm(x), expected)


def test_the_same_job_gives_the_same_result():
    assert classifier.train(JOB) == classifier.train(JOB)
