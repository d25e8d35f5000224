"""A schedule that takes a number of minutes."""

import logging

import pytest
from coco_files import config, make_coco

from gnws_d2 import load_config
from gnws_d2.config import set_key
from gnws_d2.engine import scale_schedule
from gnws_d2.engine.schedule import in_iterations
from gnws_d2.errors import ConfigError
from gnws_d2.projects.own_data import as_in, fit_to_data, minutes, packaged_config, schedule_for

SMALL = "Small/faster_rcnn_R_18_FPN_gn_ws.yaml"
TINY = ("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64")


def schedule(file, *opts, explicit=("SOLVER.MINUTES",)):
    cfg = fit_to_data(config(file, file, *opts, name=SMALL))
    return schedule_for(cfg, 40, 1, set(explicit), packaged_config(SMALL))


@pytest.mark.parametrize("length", [1, 5, 60])
@pytest.mark.parametrize("pace", [(0.05, 0.01), (0.5, 0.2), (0.5, 3)])
def test_the_schedule_fills_the_minutes(tmp_path, monkeypatch, length, pace):
    file = make_coco(tmp_path, images=40)
    monkeypatch.setattr(minutes, "seconds_of", lambda cfg: pace)
    if pace[1] == 3 and length < 5:  # an evaluation takes two minutes
        with pytest.raises(ConfigError, match=r"SOLVER\.MINUTES is 1, but .* take 2\.\d minutes"):
            schedule(file, "SOLVER.MINUTES", str(length))
        return
    cfg = schedule(file, "SOLVER.MINUTES", str(length))
    iterations, period = cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD
    evaluations = max(1, iterations // period)
    evaluations += evaluations > 1  # the best
    taken = iterations * pace[0] + evaluations * 40 * pace[1] + minutes.AROUND
    assert 0.6 * 60 * length < taken < 1.1 * 60 * length
    assert cfg.SOLVER.MINUTES == 0 and cfg.SOLVER.WARMUP_ITERS <= iterations / 10


def test_the_time_before_counts(tmp_path, monkeypatch):
    file, lengths = make_coco(tmp_path, images=40), []
    monkeypatch.setattr(minutes, "seconds_of", lambda cfg: (0.5, 0.0))
    cfg = fit_to_data(config(file, file, "SOLVER.MINUTES", "9", name=SMALL))
    for before in (0, 100):
        monkeypatch.setattr(minutes.time, "monotonic", lambda before=before: 7.0 + before)
        packaged = packaged_config(SMALL)
        found = schedule_for(cfg, 40, 1, {"SOLVER.MINUTES"}, packaged, began=7.0)
        lengths.append(found.SOLVER.MAX_ITER)
    assert lengths[0] - lengths[1] == pytest.approx(100 / 0.5, abs=1)


def test_a_step_and_an_evaluation_are_timed_without_a_trace(tmp_path, caplog, capfd):
    file = make_coco(tmp_path)
    cfg = fit_to_data(config(file, file, "SOLVER.MINUTES", "9", *TINY, name=SMALL))
    caplog.set_level("INFO", "detectron2")  # as set up
    caplog.clear()
    handlers = [*logging.getLogger("detectron2").handlers]
    iteration, image = minutes.seconds_of(cfg)
    assert 0.005 < image < iteration < 20
    assert not caplog.records and not capfd.readouterr().out
    assert logging.getLogger("detectron2").handlers == handlers
    assert not (tmp_path / "output").exists()


def test_what_contradicts_the_minutes_is_refused(tmp_path):
    file = make_coco(tmp_path)
    with pytest.raises(ConfigError, match=r"MINUTES is 9 and SOLVER.EPOCHS is 2, which set the"):
        schedule(file, "SOLVER.MINUTES", "9", "SOLVER.EPOCHS", "2")
    with pytest.raises(ConfigError, match=r"MINUTES is 9 and SOLVER.MAX_ITER is 7, which set the"):
        both = ("SOLVER.MINUTES", "SOLVER.MAX_ITER")
        schedule(file, "SOLVER.MINUTES", "9", "SOLVER.MAX_ITER", "7", explicit=both)
    with pytest.raises(ConfigError, match=r"SOLVER.MINUTES is a length of training on files"):
        in_iterations(scale_schedule(load_config(SMALL, ["SOLVER.MINUTES", "9"]), 1))


def test_a_resumed_run_keeps_its_schedule(tmp_path):
    file = make_coco(tmp_path)
    former = config(file, file, name=SMALL)
    for key, value in {"SOLVER.MAX_ITER": 123, "SOLVER.STEPS": (99,)}.items():
        set_key(former, key, value)
    cfg = fit_to_data(config(file, file, "SOLVER.MINUTES", "9", name=SMALL))
    explicit = as_in(former, cfg)
    resumed = schedule_for(cfg, 40, 1, explicit, packaged_config(SMALL))
    assert (resumed.SOLVER.MAX_ITER, resumed.SOLVER.STEPS) == (123, (99,))
