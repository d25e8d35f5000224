"""The schedule on fewer and on more processes than it was published for, and with another batch."""

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.solver import build_lr_scheduler

from gnws_d2 import load_config
from gnws_d2.engine import scale_schedule
from gnws_d2.engine.schedule import in_iterations
from gnws_d2.errors import ConfigError

CONFIG = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"


@pytest.mark.parametrize(
    ("processes", "requested", "batch"),
    [(1, 0, 2), (4, 0, 8), (16, 0, 32), (1, 4, 4), (2, 4, 4), (8, 32, 32)],
)
def test_images_seen_and_rate_per_image_stay(processes, requested, batch, caplog):
    caplog.set_level("INFO")
    cfg = load_config(CONFIG, ["SOLVER.SCALE_TO_BATCH", str(requested)])
    cfg.freeze()
    scaled = scale_schedule(cfg, processes)
    solver = scaled.SOLVER
    assert solver.IMS_PER_BATCH == batch
    assert solver.BASE_LR == pytest.approx(0.02 * batch / 16)
    assert solver.MAX_ITER * batch == 87_960 * 16
    assert solver.WARMUP_ITERS == round(cfg.SOLVER.WARMUP_ITERS * 16 / batch)
    assert [s * batch for s in solver.STEPS] == [58_640 * 16, 80_630 * 16]
    rows = [line.replace("|", " ").split() for line in caplog.text.splitlines() if "|" in line]
    assert ["SOLVER.IMS_PER_BATCH", "16", str(batch)] in rows
    assert ["SOLVER.MAX_ITER", "87960", str(solver.MAX_ITER)] in rows
    # It is done once.
    assert scaled.is_frozen() and scale_schedule(scaled, processes) is scaled
    assert DefaultTrainer.auto_scale_workers(scaled, processes) is scaled


def test_nothing_is_scaled_without_a_reference_and_what_does_not_divide_is_refused():
    for opts, processes in (([], 8), (["SOLVER.REFERENCE_WORLD_SIZE", "0"], 3)):
        cfg = load_config(CONFIG, opts)
        assert scale_schedule(cfg, processes) is cfg
    cfg = load_config(CONFIG, ["SOLVER.IMS_PER_BATCH", "2"])
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH is 2.*REFERENCE_WORLD_SIZE 0"):
        scale_schedule(cfg, 1)


def test_the_warm_up_is_mmdetections():
    """Its LinearLR(start_factor=0.001, begin=0, end=500) multiplies the rate of iteration i by
    0.001 + 0.999 i / 499."""
    schedule = build_lr_scheduler(load_config(CONFIG), torch.optim.SGD([torch.zeros(1)], lr=1.0))
    for i in (0, 1, 250, 498, 499, 500, 58_639):
        factor = min(0.001 + 0.999 * i / 499, 1.0)
        schedule.last_epoch = i
        assert schedule.get_lr() == pytest.approx([factor], rel=1e-12), i


def test_epochs_become_iterations_and_steps_keep_their_fractions(tiny_config):
    """16 images in batches of 2 are 8 iterations an epoch."""
    opts = ["SOLVER.EPOCHS", "3", "SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(50, 75)"]
    opts += ["SOLVER.CHECKPOINT_EPOCHS", "1", "TEST.EVAL_EPOCHS", "0.5"]
    cfg = in_iterations(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *opts))
    assert cfg.SOLVER.MAX_ITER == 24 and cfg.SOLVER.STEPS == (12, 18)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 8 and cfg.TEST.EVAL_PERIOD == 4
    assert in_iterations(cfg) is cfg
    cfg = tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *opts)
    assert in_iterations(cfg, ["SOLVER.STEPS"]).SOLVER.STEPS == (50, 75)  # what was typed beside it


def test_a_short_period_is_not_rounded_to_none():
    """Detectron2's rule makes 0 of it, which turns evaluation off and divides by 0."""
    opts = ["SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "3"]
    scaled = scale_schedule(load_config(CONFIG, opts), 64)
    assert (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.SOLVER.MAX_ITER) == (1, 1)
    assert scaled.TEST.EVAL_PERIOD == 0
