"""Jobs see as many images, or make as many steps, with a learning rate that fits their batch."""

from dataclasses import replace

import channels
import classifier
import detector
import finetune
import numpy as np
import pytest
import smoothness
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from experiment import BATCHES, NORMS, Job, Preset
from PIL import Image
from torch import nn
from torch.nn import functional as F

from gnws_d2.engine import scale_schedule
from gnws_d2.layers import BatchChannelNorm2d

MODULES = (detector, finetune, classifier, smoothness, channels)
EXPERIMENTS = {name: preset for m in MODULES for name, preset in m.EXPERIMENTS.items()}
JOB = Job("classifier", "GN+WS", batch=2, seed=0, images=48, reference_lr=0.1)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_as_many_images_or_steps_and_a_linear_learning_rate(experiment):
    preset = EXPERIMENTS[experiment]
    lrs = {norm: 0.01 * i for i, norm in enumerate(preset.norms, 1)}
    jobs = preset.jobs(experiment, None if preset.reference_lr else lrs)
    assert len({job.name for job in jobs}) == len(jobs)
    assert len({job.steps if preset.steps else job.images for job in jobs}) == 1
    for job in jobs:
        rates = preset.lr_grid or [preset.reference_lr or lrs[job.norm]]
        assert job.lr * 8 / job.batch == pytest.approx(job.reference_lr)
        assert job.reference_lr in rates and job.images == job.steps * job.batch


def test_the_seeds_that_choose_a_rate_measure_nothing():
    for name, preset in EXPERIMENTS.items():
        if preset.lr_grid:
            measured = EXPERIMENTS[name.removesuffix("_lr")]
            assert preset.first_seed >= measured.first_seed + measured.seeds
            assert preset.norms == measured.norms


def test_equal_steps_are_those_of_a_batch_of_four():
    [steps] = {job.steps for job in EXPERIMENTS["detector_steps"].jobs("detector_steps")}
    assert steps in {
        job.steps for job in EXPERIMENTS["detector"].jobs("detector") if job.batch == 4
    }


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
        data = classifier.load("train")
        return torch.cat([labels for _, labels in classifier.batches(job, data)]).tolist()

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


def test_bn_forgets_its_running_statistics_and_bcn_keeps_its_estimates():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 3, 3) * 2 + 1
    for norm in (nn.BatchNorm2d(8), BatchChannelNorm2d(8, 2, estimate=True), nn.GroupNorm(2, 8)):
        before = norm.eval()(x)
        found = classifier.forget_running_statistics(nn.Sequential(norm))
        assert found == isinstance(norm, nn.BatchNorm2d)
        expected = F.batch_norm(x, None, None, training=True) if found else before
        torch.testing.assert_close(norm(x), expected)


def finetune_model(norm: str, folder) -> tuple[Job, nn.Module]:
    detector.register()
    job = Job("finetune", norm, batch=1, seed=0, images=8, reference_lr=0.03)
    return job, build_model(finetune.job_config(job, str(folder)))


@pytest.mark.slow
@pytest.mark.parametrize("norm", finetune.NORMS)
def test_fine_tuning_starts_from_the_weights_of_the_classifier(norm, tmp_path, monkeypatch):
    """A FrozenBN detector computes what the trained BN backbone does in evaluation."""
    monkeypatch.setattr(finetune, "WEIGHTS", tmp_path)
    trained = {"FrozenBN": "BN"}.get(norm, norm)
    torch.manual_seed(0)
    job = Job("pretrain", trained, batch=32, seed=0, images=32, reference_lr=0.1)
    backbone = build_model(finetune.job_config(job, "")).backbone.bottom_up
    images = torch.randn(2, 3, 64, 64)
    backbone.train()(images)  # moves running statistics
    torch.save(backbone.state_dict(), finetune.weights_file(trained))
    job, model = finetune_model(norm, tmp_path)
    finetune.load_backbone(job, model)
    found = model.backbone.bottom_up
    torch.testing.assert_close(found.eval()(images)["res4"], backbone.eval()(images)["res4"])
    assert [name for name, p in found.named_parameters() if not p.requires_grad] == [
        name for name, _ in found.named_parameters() if name.startswith(("stem", "res2"))
    ]
    norms = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    assert (
        norms
        == {
            "FrozenBN": {"FrozenBatchNorm2d"},
            "BN": {"FrozenBatchNorm2d", "BatchNorm2d"},
            "GN+WS": {"GroupNorm"},
        }[norm]
    )


@pytest.mark.slow
def test_weights_of_another_norm_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "WEIGHTS", tmp_path)
    job, model = finetune_model("GN+WS", tmp_path)
    torch.save(
        finetune_model("BN", tmp_path)[1].backbone.bottom_up.state_dict(),
        finetune.weights_file("GN+WS"),
    )
    with pytest.raises(ValueError, match="does not fit"):
        finetune.load_backbone(job, model)


def test_a_crop_is_a_digit_with_an_eighth_of_ground_around(tmp_path, request):
    scene = np.zeros((160, 160, 3), np.uint8)
    scene[40:88, 20:44] = (30, 60, 90)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    digit = {"bbox": [20.0, 40.0, 24.0, 48.0], "category_id": 7}
    record = {"file_name": str(tmp_path / "scene.png"), "annotations": [digit]}
    DatasetCatalog.register("digits_of_a_test", lambda: [record])
    request.addfinalizer(lambda: DatasetCatalog.remove("digits_of_a_test"))
    [image], [label] = finetune.crops("of_a_test")
    assert label == 7 and image.shape == (3, finetune.CROP, finetune.CROP)
    assert image[:, 16, 16].tolist() == [30, 60, 90]
    assert image[:, 0].eq(0).all() and image[:, :, 0].eq(0).all()
    # 24 x 48 pixels of 36 x 60.
    assert image[0].mean() == pytest.approx(30 * 24 * 48 / (36 * 60), rel=0.05)
