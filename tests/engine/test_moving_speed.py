"""The moving speed over a training: its schedule, its refusal, and a run that is resumed."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny import FEW_PROPOSALS

from gnws_d2.engine import Trainer
from gnws_d2.engine.hooks import MovingSpeed
from gnws_d2.errors import ConfigError
from gnws_d2.layers import EstimatedBatchNorm2d

CONFIG = "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml"


def speeds(cfg, iterations: list[int]) -> list[float]:
    """What a layer has in each of ``iterations``, in that order."""
    layers = [EstimatedBatchNorm2d(4), EstimatedBatchNorm2d(8)]
    hook = MovingSpeed(cfg, layers)
    seen = []
    for iteration in iterations:
        hook.trainer = SimpleNamespace(iter=iteration)
        hook.before_step()
        assert layers[0].moving_speed == layers[1].moving_speed
        seen.append(layers[0].moving_speed)
    return seen


def test_it_falls_in_the_steps_of_the_learning_rate_and_has_no_warm_up(tiny_config):
    cfg = tiny_config(
        *(CONFIG, "MODEL.BCN.MOVING_SPEED", "0.2", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
        *("SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(60, 80)", "SOLVER.WARMUP_ITERS", "50"),
    )
    expected = {0: 0.2, 10: 0.2, 59: 0.2, 60: 0.02, 79: 0.02, 80: 0.002, 99: 0.002}
    assert speeds(cfg, list(expected)) == pytest.approx(list(expected.values()))
    # A function of the iteration alone, wherever a run starts.
    assert speeds(cfg, [80, 10]) == pytest.approx([0.002, 0.2])


def test_it_falls_with_the_cosine_of_the_learning_rate(tiny_config):
    cfg = tiny_config(CONFIG, "SOLVER.MAX_ITER", "100", "SOLVER.WARMUP_ITERS", "50")
    iterations = [0, 25, 50, 99]
    expected = [0.1 * (1 + math.cos(math.pi * i / 100)) / 2 for i in iterations]
    assert speeds(cfg, iterations) == pytest.approx(expected)


def test_it_can_stay(tiny_config):
    cfg = tiny_config(CONFIG, "SOLVER.MAX_ITER", "100", "MODEL.BCN.SCHEDULE", "constant")
    assert speeds(cfg, [0, 50, 99]) == pytest.approx([0.1] * 3)


def test_training_with_it_unset_is_refused(tiny_config):
    cfg = tiny_config(CONFIG, "MODEL.BCN.MOVING_SPEED", "0.0")
    build_model(cfg).eval()  # inference needs none
    with pytest.raises(ConfigError, match=r"MODEL\.BCN\.MOVING_SPEED is 0 \(unset\).*Set it"):
        Trainer(cfg)


def test_a_model_that_is_trained_without_the_hook_is_refused(tiny_config):
    model = build_model(tiny_config(CONFIG))
    batch = [{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}]
    with EventStorage(), pytest.raises(RuntimeError, match="moving_speed"):
        model.train()(batch)


def test_norms_without_estimates_need_none(tiny_config):
    parts = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    norms = [word for part in parts for word in (f"MODEL.{part}.NORM", "BCN")]
    cfg = tiny_config(CONFIG, *norms, "MODEL.BCN.MOVING_SPEED", "0.0", "SOLVER.MAX_ITER", "1")
    cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 0, ()
    trainer = Trainer(cfg)
    assert not any(isinstance(hook, MovingSpeed) for hook in trainer._hooks)
    trainer.train()


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_resumed_training_ends_like_an_unbroken_one(tiny_config):
    cfg = tiny_config(CONFIG, *FEW_PROPOSALS, "SOLVER.CHECKPOINT_PERIOD", "2")
    cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    trainer.train()
    unbroken = state(trainer)
    logged = [v for v, _ in trainer.storage.history("moving_speed").values()]
    expected = [0.1 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert logged == pytest.approx(expected)

    folder = Path(cfg.OUTPUT_DIR)
    saved = torch.load(folder / "model_0000001.pth")["model"]
    moved = [name for name in saved if name.endswith("estbn_moving_speed")]
    assert moved and all(float(saved[n]) == pytest.approx(expected[1]) for n in moved)
    means = [saved[n] for n in saved if n.endswith("running_mean")]
    assert len(means) == len(moved) and all((mean != 0).any() for mean in means)

    (folder / "last_checkpoint").write_text("model_0000001.pth")
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert unbroken.keys() == state(resumed).keys()
    assert all(torch.equal(unbroken[name], value) for name, value in state(resumed).items())
    assert all(float(unbroken[n]) == pytest.approx(expected[3]) for n in moved)


@pytest.mark.slow
def test_training_lowers_the_loss(tiny_config):
    cfg = tiny_config(CONFIG, *FEW_PROPOSALS, "SOLVER.MAX_ITER", "12")
    cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    trainer.train()
    history = [v for v, _ in trainer.storage.history("total_loss").values()]
    assert sum(history[-3:]) < sum(history[:3])
