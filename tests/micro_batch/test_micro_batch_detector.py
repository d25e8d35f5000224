"""The detector's schedule, and the backbone that fine-tuning starts from."""

import detector
import finetune
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from experiment import Job
from PIL import Image

from gnws_d2.engine import scale_schedule


@pytest.mark.parametrize(("norm", "batch"), [("BN", 1), ("GN+WS", 8), ("BCN+WS", 2)])
def test_the_trainer_scales_the_schedule_to_the_job(norm, batch, tmp_path):
    job = Job("detector", norm, batch, seed=3, images=160, reference_lr=0.06)
    solver = scale_schedule(detector.job_config(job, str(tmp_path)), 1).SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (batch, job.steps)
    assert solver.BASE_LR == pytest.approx(job.lr)
    assert solver.WARMUP_ITERS * batch == 16


@pytest.mark.slow
@pytest.mark.parametrize("norm", finetune.NORMS)
def test_fine_tuning_starts_from_the_weights_of_the_classifier(norm, tmp_path, monkeypatch):
    """A FrozenBN detector computes what the trained BN backbone does in evaluation."""
    monkeypatch.setattr(finetune, "WEIGHTS", tmp_path)
    torch.manual_seed(0)
    trained = norm.removeprefix("Frozen")
    job = Job("pretrain", trained, batch=32, seed=0, images=32, reference_lr=0.1)
    backbone = build_model(finetune.job_config(job, "")).backbone.bottom_up
    images = torch.randn(2, 3, 64, 64)
    backbone.train()(images)  # moves running statistics
    torch.save(backbone.state_dict(), finetune.weights_file(trained))

    detector.register()
    job = Job("finetune", norm, batch=1, seed=0, images=8, reference_lr=0.03)
    model = build_model(finetune.job_config(job, str(tmp_path)))
    finetune.load_backbone(job, model)
    found = model.backbone.bottom_up
    # Frozen stages keep the standardized weight, others standardize in the convolution: the last
    # digits differ.
    pair = found.eval()(images)["res4"], backbone.eval()(images)["res4"]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)
    frozen = {name for name, p in found.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in found.named_parameters() if n.startswith(("stem", "res2"))}
    norms = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    kinds = {"FrozenBN": {"FrozenBatchNorm2d"}, "BN": {"FrozenBatchNorm2d", "BatchNorm2d"}}
    assert norms == kinds.get(norm, {"GroupNorm"})


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
