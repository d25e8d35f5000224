"""The best checkpoint and early stopping, of results that a test chooses, and the moving speed."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny import FEW_PROPOSALS
from torch import nn

from gnws_d2.checkpoint import Checkpointer
from gnws_d2.engine import Trainer
from gnws_d2.engine.hooks import BestCheckpointer, MovingSpeed, NewestCheckpointer
from gnws_d2.errors import ConfigError
from gnws_d2.layers import EstimatedBatchNorm2d

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
WITH_BCN = "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml"


class Counter(TrainerBase):
    """Trains one weight, the iteration, and evaluates after each iteration with these results."""

    def __init__(self, folder, values, metric="segm/AP", wanted="auto", first=""):
        super().__init__()
        self.model = nn.Linear(1, 1)
        task, name = metric.rsplit("/", 1)
        results = ({"bbox": {"AP": 1.0}, task: {name: value}} for value in values)
        best = BestCheckpointer(1, Checkpointer(self.model, str(folder)), wanted, first, patience=0)
        self.register_hooks([EvalHook(1, lambda: next(results)), best])

    def before_train(self):
        self.model.weight.data.fill_(self.start_iter - 1)
        super().before_train()

    def run_step(self):
        self.model.weight.data.fill_(self.iter)


def best(folder: Path) -> int:
    saved = torch.load(folder / "model_best.pth", weights_only=True)
    assert saved["model"]["weight"] == saved["iteration"]
    return saved["iteration"]


def evaluations(folder: Path) -> list[list]:
    return next(iter(json.loads((folder / "evaluations.json").read_text()).values()))


@pytest.mark.parametrize(
    ("values", "expected", "options"),
    [
        ([1.0, 3.0, math.nan, 3.0], 1, {}),
        ([1.0, 3.0, 2.0, 4.0], 3, {}),
        ([math.nan, math.nan, 2.0, 1.0], 2, {}),  # it finds nothing at first
        ([math.nan] * 4, 0, {}),
        ([math.nan, 0.0, math.nan, 0.0], 1, {}),  # what is wrong is better than nothing
        ([0.3, 0.2, 0.1, 0.2], 0, {"metric": "digits/bbox/AP", "first": "digits"}),
        ([0.1, 0.2, 0.1, 0.1], 1, {"metric": "other/bbox/AP50", "wanted": "other/bbox/AP50"}),
    ],
)
def test_the_first_of_the_best_evaluations_is_kept(tmp_path, values, expected, options):
    Counter(tmp_path, values, **options).train(0, 4)
    assert best(tmp_path) == expected
    assert str(evaluations(tmp_path)) == str(list(map(list, enumerate(values))))
    assert not (tmp_path / "last_checkpoint").exists()  # training resumes from the last one


def test_a_resumed_run_knows_the_best(tmp_path):
    Counter(tmp_path, [1.0, 3.0, 5.0, 0.0]).train(0, 4)
    # As if it had been killed before iteration 2; what it then kept of that is not known yet.
    Counter(tmp_path, [2.0, 2.5]).train(2, 4)
    assert best(tmp_path) == 2
    assert evaluations(tmp_path) == [[0, 1.0], [1, 3.0], [2, 2.0], [3, 2.5]]
    Counter(tmp_path, [3.5, 4.0]).train(2, 4)
    assert best(tmp_path) == 3
    Counter(tmp_path, [4.0]).train(4, 4)  # killed before its end was evaluated
    assert best(tmp_path) == 3 and len(evaluations(tmp_path)) == 4


def test_a_metric_that_does_not_exist_is_named_with_those_that_do(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="gnws_d2"):
        Counter(tmp_path, [1.0] * 4, wanted="box/AP").train(0, 4)
    assert "'box/AP', which no evaluation yields" in caplog.text
    assert "bbox/AP" in caplog.text and "segm/AP" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


class Saver(TrainerBase):
    """Saves after each second iteration; ``seen`` are the files after each iteration."""

    def __init__(self, folder, kept):
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.folder, self.seen = folder, []
        checkpointer = Checkpointer(nn.Linear(1, 1), str(folder))
        self.register_hooks([NewestCheckpointer(checkpointer, 2, kept)])

    def run_step(self):
        pass

    def after_step(self):
        super().after_step()
        names = [file.stem.removeprefix("model_") for file in self.folder.glob("*.pth")]
        self.seen.append({int(name) if name.isdigit() else name for name in names})


def test_the_newest_checkpoints_are_kept_also_of_a_resumed_run(tmp_path):
    for name in ("best", "0000099"):  # of an earlier run
        (tmp_path / f"model_{name}.pth").touch()
    whole, resumed, every = Saver(tmp_path, 2), Saver(tmp_path, 2), Saver(tmp_path / "all", 0)
    whole.train(0, 8)
    saved = [set(), {1}, {1}, {1, 3}, {1, 3}, {3, 5}, {3, 5}, {5, "final"}]
    assert [seen - {"best", 99} for seen in whole.seen] == saved
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    resumed.train(6, 11)  # for longer
    saved = [{5}, {5, 7}, {5, 7}, {7, 9}, {7, "final"}]
    assert [seen - {"best", 99} for seen in resumed.seen] == [s | {"final"} for s in saved]
    assert whole.seen[-1] & resumed.seen[-1] >= {"best", 99}
    every.train(0, 8)
    assert every.seen[-1] == {1, 3, 5, 7, "final"}


@pytest.mark.slow
def test_a_run_that_no_longer_improves_ends_as_if_complete(tiny_config):
    def train(patience: int, values: list[float], resume: bool = True) -> tuple[int, int]:
        """Return the iterations of the final and of the best checkpoint."""
        opts = ["TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "9"]
        opts += ["SOLVER.EARLY_STOPPING", str(patience)]
        cfg, remaining = tiny_config(MASK_RCNN, *FEW_PROPOSALS, *opts), iter(values)

        class Scored(Trainer):
            @classmethod
            def test(cls, cfg, model, evaluators=None):
                return {"segm": {"AP": next(remaining)}}

        trainer = Scored(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        assert next(remaining, None) is None
        return tuple(
            torch.load(Path(cfg.OUTPUT_DIR) / name, weights_only=True)["iteration"]
            for name in ("model_final.pth", "model_best.pth")
        )

    assert train(2, [1.0, 2.0, 2.0, 1.0], resume=False) == (3, 1)
    assert train(2, []) == (3, 1)  # ends at once
    assert train(3, [3.0, 1.0, 1.0, 1.0]) == (7, 4)


@pytest.mark.parametrize("opts", [["TEST.EVAL_PERIOD", "0"], ["TEST.BEST_METRIC", ""]])
def test_early_stopping_needs_evaluations_and_a_metric(tiny_config, opts):
    opts = ["TEST.EVAL_PERIOD", "1", "SOLVER.EARLY_STOPPING", "2", *opts]
    with pytest.raises(ConfigError, match=r"EARLY_STOPPING is 2, but no evaluation can improve"):
        Trainer(tiny_config(MASK_RCNN, *opts))


STEPS = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(60, 80)"]


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (STEPS, {0: 0.1, 10: 0.1, 59: 0.1, 60: 0.01, 79: 0.01, 80: 0.001, 99: 0.001}),
        # The cosine of the learning rate.
        ([], {i: 0.1 * (1 + math.cos(math.pi * i / 100)) / 2 for i in (0, 25, 50, 99)}),
        (["MODEL.BCN.SCHEDULE", "constant"], dict.fromkeys((0, 50, 99), 0.1)),
    ],
)
def test_the_moving_speed_falls_with_the_learning_rate_but_has_no_warm_up(
    tiny_config, opts, expected
):
    cfg = tiny_config(WITH_BCN, "SOLVER.MAX_ITER", "100", "SOLVER.WARMUP_ITERS", "50", *opts)
    layers = [EstimatedBatchNorm2d(4), EstimatedBatchNorm2d(8)]
    hook = MovingSpeed(cfg, layers)
    # A function of the iteration alone, wherever a run starts.
    for iteration in (*expected, *reversed(expected)):
        hook.trainer = SimpleNamespace(iter=iteration, storage=EventStorage())
        hook.before_step()
        assert [layer.moving_speed for layer in layers] == pytest.approx([expected[iteration]] * 2)


def test_training_with_it_unset_is_refused_where_there_are_estimates(tiny_config):
    opts = ["MODEL.BCN.MOVING_SPEED", "0.0"]
    cfg = tiny_config(WITH_BCN, *opts)
    build_model(cfg).eval()  # inference needs none
    with pytest.raises(ConfigError, match=r"MODEL\.BCN\.MOVING_SPEED is 0.*Set it"):
        Trainer(cfg)
    for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        opts += [f"MODEL.{part}.NORM", "BCN"]
    assert not any(isinstance(h, MovingSpeed) for h in Trainer(tiny_config(WITH_BCN, *opts))._hooks)


@pytest.mark.slow
def test_a_resumed_training_ends_like_an_unbroken_one(tiny_config):
    """With a speed that falls, and in micro-batches."""
    opts = ["SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.ACCUMULATION_STEPS", "2"]
    cfg = tiny_config(WITH_BCN, *FEW_PROPOSALS, *opts, "DATASETS.TEST", "()")
    trainer = Trainer(cfg)
    trainer.train()
    unbroken = trainer.model.state_dict()
    logged = [v for v, _ in trainer.storage.history("moving_speed").values()]
    expected = [0.1 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert logged == pytest.approx(expected)

    folder = Path(cfg.OUTPUT_DIR)
    saved = torch.load(folder / "model_0000001.pth", weights_only=True)["model"]
    moved = [name for name in saved if name.endswith("estbn_moving_speed")]
    assert moved and all(float(saved[n]) == pytest.approx(expected[1]) for n in moved)
    means = [saved[n] for n in saved if n.endswith("running_mean")]
    assert len(means) == len(moved) and all((mean != 0).any() for mean in means)

    (folder / "last_checkpoint").write_text("model_0000001.pth")
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    found = resumed.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in unbroken.items())
    assert all(float(unbroken[n]) == pytest.approx(expected[3]) for n in moved)
