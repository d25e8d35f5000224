"""The best checkpoint and early stopping, with results that a test chooses."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny import FEW_PROPOSALS

from gnws_d2.engine import Trainer
from gnws_d2.errors import ConfigError

PERIODS = ["TEST.EVAL_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1"]


def train(tiny_config, values, *opts, resume=False, metric="segm/AP"):
    """Train with one evaluation an iteration, of these values."""
    cfg = tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *FEW_PROPOSALS, *PERIODS, *opts)
    remaining = iter(values)

    class Scored(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            task, name = metric.rsplit("/", 1)
            return {"bbox": {"AP": 1.0}, task: {name: next(remaining)}}

    trainer = Scored(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return Path(cfg.OUTPUT_DIR)


def best(output):
    return torch.load(output / "model_best.pth", weights_only=True)["iteration"]


def same(a, b):
    a, b = (torch.load(file, weights_only=True)["model"] for file in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_evaluation_is_kept_and_the_last_one_resumed(tiny_config):
    output = train(tiny_config, [1.0, 3.0, math.nan, 2.0])
    assert best(output) == 1
    assert same(output / "model_best.pth", output / "model_0000001.pth")
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    scores = json.loads((output / "evaluations.json").read_text())["segm/AP"]
    assert [value for _, value in scores[:2]] == [1.0, 3.0] and len(scores) == 4


def test_a_detector_that_finds_nothing_is_kept_until_one_does(tiny_config):
    output = train(tiny_config, [math.nan, math.nan, 2.0, 1.0])
    assert best(output) == 2


@pytest.mark.slow
def test_a_resumed_run_knows_the_best(tiny_config):
    output = train(tiny_config, [1.0, 3.0, 5.0, 0.0])
    # As if it had been killed before iteration 2; what it then kept of that is not known yet.
    (output / "last_checkpoint").write_text("model_0000001.pth")
    train(tiny_config, [2.0, 2.5], resume=True)
    assert best(output) == 2
    scores = json.loads((output / "evaluations.json").read_text())["segm/AP"]
    assert [value for _, value in scores] == [1.0, 3.0, 2.0, 2.5]
    (output / "last_checkpoint").write_text("model_0000001.pth")
    train(tiny_config, [4.0, 3.5], resume=True)
    assert best(output) == 2 and same(output / "model_best.pth", output / "model_0000002.pth")


def test_another_metric_of_several_test_sets(tiny_config):
    sets = ["DATASETS.TEST", "('tiny_digits_val','tiny_digits_train')"]
    results = [0.3, 0.2, 0.1, 0.2]
    metric = "tiny_digits_val/bbox/AP"
    assert best(train(tiny_config, results, *sets, metric=metric)) == 0
    chosen = ["TEST.BEST_METRIC", "other/bbox/AP50"]
    assert best(train(tiny_config, [0.1, 0.2, 0.1, 0.1], *chosen, metric="other/bbox/AP50")) == 1


def test_a_metric_that_does_not_exist_is_named_with_those_that_do(tiny_config, caplog):
    with caplog.at_level("WARNING", logger="gnws_d2"):
        output = train(tiny_config, [1.0] * 4, "TEST.BEST_METRIC", "box/AP")
    assert "'box/AP', which no evaluation yields" in caplog.text
    assert "bbox/AP" in caplog.text and "segm/AP" in caplog.text
    assert not (output / "model_best.pth").exists()


@pytest.mark.slow
def test_a_run_that_no_longer_improves_ends_as_if_complete(tiny_config):
    opts = ["SOLVER.EARLY_STOPPING", "2", "SOLVER.MAX_ITER", "9"]
    output = train(tiny_config, [1.0, 2.0, 2.0, 1.0], *opts)  # a fifth evaluation would fail
    final = torch.load(output / "model_final.pth", weights_only=True)
    assert final["iteration"] == 3 and best(output) == 1
    train(tiny_config, [], *opts, resume=True)  # ends at once
    opts[1] = "3"
    train(tiny_config, [3.0, 1.0, 1.0, 1.0], *opts, resume=True)
    final = torch.load(output / "model_final.pth", weights_only=True)
    assert final["iteration"] == 7 and best(output) == 4


@pytest.mark.parametrize("opts", [["TEST.EVAL_PERIOD", "0"], ["TEST.BEST_METRIC", ""]])
def test_early_stopping_needs_evaluations_and_a_metric(tiny_config, opts):
    opts = ["TEST.EVAL_PERIOD", "1", "SOLVER.EARLY_STOPPING", "2", *opts]
    with pytest.raises(ConfigError, match=r"EARLY_STOPPING is 2, but no evaluation can improve"):
        Trainer(tiny_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *opts))
