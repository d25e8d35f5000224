"""The moving average of the weights, against torch's own, and its way through a checkpoint."""

from pathlib import Path

import pytest
import torch
from tiny import FEW_PROPOSALS
from torch.optim.swa_utils import AveragedModel

from gnws_d2.engine import Trainer
from gnws_d2.errors import ConfigError

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
WITH_BCN = "Digits/mask_rcnn_R_18_FPN_bcn_ws.yaml"  # which has running statistics
SHORT = [*FEW_PROPOSALS, "SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "()"]
DECAY = 0.25  # more than the 2 / 11 of the first step


class Recorded(Trainer):
    """Averages what it trains by torch's AveragedModel, in float64."""

    def build_hooks(self):
        def average(averaged, current, steps):
            if not averaged.is_floating_point():
                return current
            decay = min(DECAY, (1 + int(steps)) / (10 + int(steps)))
            return decay * averaged + (1 - decay) * current

        model = self.checkpointer.model
        # Its first update copies.
        self.averaged = AveragedModel(model, avg_fn=average, use_buffers=True).double()
        self.averaged.update_parameters(model)
        return super().build_hooks()

    def run_step(self):
        super().run_step()
        self.averaged.update_parameters(self.checkpointer.model)


def saved(cfg, name: str = "model_final.pth"):
    return torch.load(Path(cfg.OUTPUT_DIR) / name, weights_only=True)


@pytest.mark.parametrize("config", [MASK_RCNN, WITH_BCN])
def test_the_average_is_saved_and_training_is_that_without_it(tiny_config, config, tmp_path):
    opts = [*SHORT, "SOLVER.MAX_ITER", "3"]
    plain = tiny_config(config, *opts, "OUTPUT_DIR", str(tmp_path / "plain"))
    torch.manual_seed(0)
    Trainer(plain).train()
    torch.manual_seed(0)
    cfg = tiny_config(config, *opts, "SOLVER.EMA_DECAY", str(DECAY))
    trainer = Recorded(cfg)
    trainer.train()
    found, trained = saved(cfg), saved(plain)["model"]
    expected = trainer.averaged.module.state_dict()
    raw = found["trainer"]["hooks"]["WeightAverage"]["weights"]
    torch.testing.assert_close(raw, {n: trained[n] for n in raw}, rtol=0, atol=0)
    for name in raw:
        values = found["model"][name].double()
        torch.testing.assert_close(values, expected[name], rtol=1e-6, atol=1e-6)
    moved = {n for n, tensor in trained.items() if not torch.equal(tensor, found["model"][n])}
    assert moved - raw.keys() <= {n for n in trained if n.endswith("num_batches_tracked")}
    assert len(moved) > len(raw) / 2 > 20
    assert any("running_var" in n for n in moved) == (config == WITH_BCN)


def test_a_run_resumes_with_its_average_bit_for_bit(tiny_config):
    cfg = tiny_config(WITH_BCN, *SHORT, "SOLVER.MAX_ITER", "3", "SOLVER.EMA_DECAY", "0.9")
    Trainer(cfg).train()
    expected = saved(cfg)
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000000.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.start_iter == 1
    found = saved(cfg)
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    torch.testing.assert_close(found["trainer"], expected["trainer"], rtol=0, atol=0)


def test_what_is_evaluated_is_what_is_saved(tiny_config):
    opts = [*FEW_PROPOSALS, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "2"]
    evaluated = []

    class Watched(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            evaluated.append({k: v.clone() for k, v in model.state_dict().items()})
            return {}

    cfg = tiny_config(MASK_RCNN, *opts, "SOLVER.EMA_DECAY", "0.9")
    Watched(cfg).train()
    torch.testing.assert_close(evaluated, [dict(saved(cfg)["model"])], rtol=0, atol=0)


def test_a_decay_of_one_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"SOLVER.EMA_DECAY is 1.0.*less than 1"):
        tiny_config(MASK_RCNN, "SOLVER.EMA_DECAY", "1")
