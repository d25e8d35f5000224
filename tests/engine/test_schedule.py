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


@pytest.mark.parametrize("processes", [1, 4, 16])
def test_images_seen_and_rate_per_image_stay(processes):
    cfg = load_config(CONFIG)
    scaled = scale_schedule(cfg, processes).SOLVER
    assert scaled.IMS_PER_BATCH == 2 * processes
    assert scaled.BASE_LR == pytest.approx(0.02 * processes / 8)
    assert scaled.MAX_ITER * scaled.IMS_PER_BATCH == cfg.SOLVER.MAX_ITER * 16
    assert scaled.WARMUP_ITERS == round(cfg.SOLVER.WARMUP_ITERS * 16 / scaled.IMS_PER_BATCH)
    assert [s * scaled.IMS_PER_BATCH for s in scaled.STEPS] == [58_640 * 16, 80_630 * 16]


def test_old_and_new_values_are_logged(caplog):
    caplog.set_level("INFO")
    scale_schedule(load_config(CONFIG), 1)
    lines = {line.split("|")[1].strip(): line for line in caplog.text.splitlines() if "|" in line}
    assert "16" in lines["SOLVER.IMS_PER_BATCH"] and " 2 " in lines["SOLVER.IMS_PER_BATCH"]
    assert "0.02" in lines["SOLVER.BASE_LR"] and "0.0025" in lines["SOLVER.BASE_LR"]
    assert "87960" in lines["SOLVER.MAX_ITER"] and "703680" in lines["SOLVER.MAX_ITER"]


@pytest.mark.parametrize("opts", [[], ["SOLVER.REFERENCE_WORLD_SIZE", "0"]])
def test_nothing_is_scaled_at_the_reference_or_without_one(opts):
    cfg = load_config(CONFIG, opts)
    assert scale_schedule(cfg, 8) is cfg


def test_a_batch_that_does_not_divide_is_refused_with_the_cure():
    cfg = load_config(CONFIG, ["SOLVER.IMS_PER_BATCH", "2"])
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH is 2.*REFERENCE_WORLD_SIZE 0"):
        scale_schedule(cfg, 1)


@pytest.mark.parametrize(("batch", "processes"), [(4, 1), (4, 2), (32, 8)])
def test_another_batch_on_request_scales_rate_and_schedule(batch, processes):
    cfg = load_config(CONFIG, ["SOLVER.SCALE_TO_BATCH", str(batch)])
    scaled = scale_schedule(cfg, processes).SOLVER
    assert scaled.IMS_PER_BATCH == batch
    assert scaled.BASE_LR == pytest.approx(0.02 * batch / 16)
    assert scaled.MAX_ITER * batch == cfg.SOLVER.MAX_ITER * 16
    assert scaled.WARMUP_ITERS == round(cfg.SOLVER.WARMUP_ITERS * 16 / batch)
    assert [s * batch for s in scaled.STEPS] == [58_640 * 16, 80_630 * 16]


def test_scaling_to_a_batch_is_logged_and_done_once(caplog):
    caplog.set_level("INFO")
    scaled = scale_schedule(load_config(CONFIG, ["SOLVER.SCALE_TO_BATCH", "4"]), 1)
    assert "from a batch of 16 to 4" in caplog.text
    lines = {line.split("|")[1].strip(): line for line in caplog.text.splitlines() if "|" in line}
    assert "87960" in lines["SOLVER.MAX_ITER"] and "351840" in lines["SOLVER.MAX_ITER"]
    assert scale_schedule(scaled, 1) is scaled
    assert DefaultTrainer.auto_scale_workers(scaled, 1) is scaled


@pytest.mark.parametrize(("steps", "processes"), [(8, 1), (16, 1), (4, 2)])
def test_accumulation_keeps_the_published_batch_on_any_number_of_processes(steps, processes):
    cfg = load_config(CONFIG, ["SOLVER.ACCUMULATION_STEPS", str(steps)])
    kept = scale_schedule(cfg, processes)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0  # this alone is another: nothing is left to scale
    assert kept == cfg


def test_a_frozen_config_stays_frozen():
    cfg = load_config(CONFIG, ["SOLVER.SCALE_TO_BATCH", "4"])
    cfg.freeze()
    assert scale_schedule(cfg, 1).is_frozen() and cfg.SOLVER.IMS_PER_BATCH == 16


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
