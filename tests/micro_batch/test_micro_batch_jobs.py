"""Every job of an experiment sees as many images, with a learning rate that fits its batch."""

from dataclasses import replace

import channels
import classifier
import detector
import pytest
import smoothness
import torch
from experiment import BATCHES, NORMS, Job, Preset, loss_curve

from gnws_d2.engine import scale_schedule

EXPERIMENTS = {m.__name__: m.PRESETS for m in (detector, classifier, smoothness, channels)}
JOB = Job("classifier", "GN+WS", batch=2, seed=0, images=48, reference_lr=0.1)


@pytest.mark.parametrize("preset", ["small", "full"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_as_many_images_and_a_linear_learning_rate(experiment, preset):
    jobs = EXPERIMENTS[experiment][preset].jobs(experiment)
    assert len({job.name for job in jobs}) == len(jobs)
    [images] = {job.steps * job.batch for job in jobs}
    [per_image] = {job.lr / job.batch for job in jobs}
    assert per_image == jobs[0].reference_lr / 8 and images == jobs[0].images


def test_whole_seeds_come_one_after_the_other():
    jobs = Preset(images=16, reference_lr=0.1, seeds=2).jobs("classifier")
    first, second = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
    assert [(j.norm, j.batch) for j in first] == [(n, b) for n in NORMS for b in BATCHES]
    assert second == [replace(job, seed=1) for job in first]


def test_a_part_of_a_step_is_refused():
    with pytest.raises(ValueError, match="Choose a multiple of 8"):
        Preset(images=12, reference_lr=0.1, seeds=1).jobs("classifier")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_detectors_trainer_scales_to_the_job(norm, batch, tmp_path):
    job = Job("detector", norm, batch, seed=3, images=160, reference_lr=0.06)
    solver = scale_schedule(detector.job_config(job, str(tmp_path)), 1).SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (batch, job.steps)
    assert solver.BASE_LR == pytest.approx(job.lr)
    assert solver.WARMUP_ITERS * batch == 16


def test_the_order_of_images_is_that_of_the_seed_whatever_the_batch():
    def labels(batch: int, seed: int) -> list[int]:
        job = replace(JOB, batch=batch, seed=seed, images=2880)
        return torch.cat([labels for _, labels in classifier.batches(job)]).tolist()

    assert labels(1, seed=0) == labels(8, seed=0) != labels(8, seed=1)
    _, scans = classifier.load("train")
    epoch = torch.tensor(labels(8, seed=0)[: len(scans)])
    assert torch.bincount(epoch).equal(torch.bincount(scans))  # each scan once


def test_the_held_out_scans_are_not_trained_on():
    train, held_out = (classifier.load(split)[0] for split in ("train", "val"))
    assert len(train) + len(held_out) == 1797
    assert train.mean().abs() < 1e-5 and (train.std() - 1).abs() < 1e-3


@pytest.mark.parametrize("norm", classifier.NORM_LAYERS)
def test_standardizing_changes_every_convolution_and_nothing_else(norm):
    plain, standardized = (classifier.build_classifier(n) for n in (norm, f"{norm}+WS"))
    kinds = [(type(a).__name__, type(b).__name__) for a, b in zip(
        plain.modules(), standardized.modules(), strict=True
    )]  # fmt: skip
    assert kinds.count(("Conv2d", "WSConv2d")) == 9
    assert all(a == b for a, b in kinds if a != "Conv2d")


def test_loss_curve():
    assert loss_curve([1, 3, 5, 7], 2) == [2, 6]
    assert loss_curve([1, 2, 3], 2) == [1.5, 3]  # parts that differ by one step
    assert loss_curve([], 2) == []
