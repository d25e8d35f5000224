"""The schedule for a custom dataset, its lengths also in epochs."""

import itertools
import json

import pytest

from gnws_d2 import load_config
from gnws_d2.config import portable_config
from gnws_d2.engine import scale_schedule
from gnws_d2.errors import ConfigError
from gnws_d2.projects.own_data import explicit_keys, packaged_config, schedule_for

COCO = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
OWN = ["DATASETS.TRAIN", "('mine.json=images',)", "MODEL.WEIGHTS", "gnws://some_detector"]


def schedule(images, *opts, processes=1, file=COCO, device="cuda"):
    opts = list(map(str, opts))
    explicit = explicit_keys(file, opts)
    cfg = load_config(file, opts)
    cfg.MODEL.DEVICE = device
    return schedule_for(cfg, images, processes, explicit, packaged_config(file))


def test_epochs_become_iterations():
    cfg = schedule(117_266, *OWN, "SOLVER.EPOCHS", 24, "TEST.EVAL_EPOCHS", 0.5, processes=8)
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.SOLVER.BASE_LR == 0.02
    assert cfg.SOLVER.MAX_ITER == 24 * 117_266 // 16
    assert cfg.SOLVER.STEPS == (24 * 117_266 // 16 * 2 // 3, round(24 * 117_266 / 16 * 11 / 12))
    assert cfg.TEST.EVAL_PERIOD == 117_266 // 16 // 2 + 1
    assert cfg.SOLVER.EPOCHS == cfg.TEST.EVAL_EPOCHS == cfg.SOLVER.REFERENCE_WORLD_SIZE == 0


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("images", [10, 100, 400, 1000, 5000])
def test_a_dataset_of_one_s_own_gets_a_schedule_of_its_size(images, processes):
    cfg = schedule(images, *OWN, processes=processes)
    solver, batch = cfg.SOLVER, 2 * processes
    epochs = solver.MAX_ITER * batch / images
    assert 12 <= epochs < 60 + batch / images
    if 12 < epochs < 60:
        assert solver.MAX_ITER * batch == pytest.approx(24_000, rel=0.03)
    assert cfg.TEST.EVAL_PERIOD == solver.CHECKPOINT_PERIOD
    assert cfg.TEST.EVAL_PERIOD >= round(images / batch)
    assert solver.CHECKPOINTS_KEPT == 2
    assert 6 <= solver.MAX_ITER / cfg.TEST.EVAL_PERIOD <= 13


def test_weights_that_know_less_train_longer():
    lengths = [
        schedule(500, *OWN[:2], "MODEL.WEIGHTS", weights).SOLVER.MAX_ITER
        for weights in ("model_final.pth", "gnws://imagenet/resnet50_gn_ws", "")
    ]
    assert lengths == [12_000, 24_000, 36_000]
    assert schedule(500, *OWN, device="cpu").SOLVER.MAX_ITER == 3_000


def test_what_is_set_explicitly_stays():
    values = {
        **{"SOLVER.IMS_PER_BATCH": 6, "SOLVER.BASE_LR": 0.003, "SOLVER.MAX_ITER": 77},
        **{"SOLVER.STEPS": (3, 9), "SOLVER.WARMUP_ITERS": 70, "SOLVER.CHECKPOINT_PERIOD": 5},
        **{"TEST.EVAL_PERIOD": 11, "SOLVER.CHECKPOINTS_KEPT": 0},
    }
    for key, value in values.items():
        section, name = key.split(".")
        assert schedule(100, *OWN, key, value, processes=2)[section][name] == value


KEYS = ["IMS_PER_BATCH", "SCALE_TO_BATCH", "REFERENCE_WORLD_SIZE", "ACCUMULATION_STEPS"]
KEYS += ["BASE_LR", "MAX_ITER"]
VALUES = [(None, 8), (None, 4), (None, 0, 2), (None, 2), (None, 0.01), (None, 600)]


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("is_own", [False, True])
def test_the_schedule_is_scaled_once_to_the_batch(is_own, processes, is_file, tmp_path):
    """The packaged rate is for 16 images. What is set is scaled where a key asks for it."""
    for values in itertools.product(*VALUES):
        given = {k: v for k, v in zip(KEYS, values, strict=True) if v is not None}
        opts, file = [w for k, v in given.items() for w in (f"SOLVER.{k}", str(v))], COCO
        if is_file and given:
            file = tmp_path / "mine.yaml"
            file.write_text(f"_BASE_: {COCO}\nSOLVER: {json.dumps(given)}\n")
            opts = []
        if is_own:
            solver = schedule(400, *OWN, *opts, processes=processes, file=file).SOLVER
        else:
            solver = scale_schedule(load_config(file, opts), processes).SOLVER
        batch, to, reference, steps, rate, length = values
        is_asked, images = not is_own or bool(to) or reference is not None, batch or 16
        expected = 2 * processes if is_own and not batch and steps is None else images
        if is_asked:
            reference = 8 if reference is None else reference
            expected = images * processes // reference if reference and steps is None else images
        expected = to or expected
        meant = 16 if is_own and reference != 0 else images
        lr = 0.02 * expected / meant
        if rate or not is_own:
            lr = (rate or 0.02) * (expected / images if is_asked else 1)
        seen = 24_000 if is_own else 87_960 * images
        if length:
            seen = length * (images if is_asked else expected)
        assert solver.IMS_PER_BATCH == expected, given
        assert solver.BASE_LR == pytest.approx(lr), given
        assert solver.MAX_ITER * expected == seen, given
        if is_own:
            steps = solver.MAX_ITER * 2 / 3, solver.MAX_ITER * 11 / 12
            assert solver.STEPS == pytest.approx(steps, abs=1), given
            assert solver.WARMUP_ITERS <= solver.MAX_ITER / 10, given


def test_the_same_length_twice_is_refused():
    with pytest.raises(ConfigError, match=r"SOLVER\.EPOCHS is 5 and SOLVER\.MAX_ITER is 9"):
        schedule(205, *OWN, "SOLVER.EPOCHS", 5, "SOLVER.MAX_ITER", 9)
    with pytest.raises(ConfigError, match=r"EVAL_EPOCHS is 1 and TEST\.EVAL_PERIOD is 9"):
        schedule(205, "TEST.EVAL_EPOCHS", 1, "TEST.EVAL_PERIOD", 9)


def test_a_saved_config_runs_as_written_and_again_in_epochs(tmp_path):
    cfg = schedule(205, *OWN, "SOLVER.EPOCHS", 3)
    file = tmp_path / "config.yaml"
    file.write_text(portable_config(cfg).dump())
    for images, processes in ((205, 1), (99, 4)):
        again = schedule(images, processes=processes, file=file)
        assert again.SOLVER == cfg.SOLVER and again.TEST == cfg.TEST
    assert scale_schedule(cfg, 8) is cfg
    again = schedule(205, "SOLVER.EPOCHS", 6, file=file).SOLVER
    assert again.MAX_ITER == 615 and again.STEPS == pytest.approx((410, 564), abs=1)
    assert (again.IMS_PER_BATCH, again.BASE_LR) == (2, 0.0025)


def test_explicit_keys_are_those_of_files_of_one_s_own(tmp_path):
    (tmp_path / "base.yaml").write_text(f"_BASE_: {COCO}\nMODEL:\n  MASK_ON: False\n")
    file = tmp_path / "mine.yaml"
    file.write_text("_BASE_: base.yaml\nSOLVER:\n  BASE_LR: 0.1\n")
    opts = ["TEST.EVAL_PERIOD", "3"]
    assert explicit_keys(file, opts) == {"MODEL.MASK_ON", "SOLVER.BASE_LR", "TEST.EVAL_PERIOD"}
    assert packaged_config(tmp_path / "mine.yaml") == load_config(COCO)
    assert explicit_keys(COCO) == set()


def test_the_table_says_why(caplog):
    caplog.set_level("INFO")
    schedule(205, *OWN, "SOLVER.BASE_LR", 0.01)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in caplog.text.splitlines()]
    why = {row[0]: row[1:] for row in rows if row}
    assert why["SOLVER.BASE_LR"] == ["0.01", "set explicitly"]
    assert "60 epochs of 205 images, from a trained detector" in why["SOLVER.MAX_ITER"][1]
