"""Training and evaluation in bfloat16, on the CPU as on a GPU."""

import pytest
import torch
from detectron2.engine import AMPTrainer
from torch import nn

from gnws_d2.engine import Trainer
from gnws_d2.errors import ConfigError

AMP = ["SOLVER.AMP.ENABLED", "True"]
BFLOAT16 = [*AMP, "SOLVER.AMP.DTYPE", "bfloat16"]
MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def dtypes(model: nn.Module) -> set[torch.dtype]:
    """A set that will have the types of what convolutions give."""
    seen: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not hasattr(module, "norm"):
            module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        elif isinstance(module, nn.Conv2d) and module.norm is not None:
            module.norm.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    return seen


@pytest.mark.parametrize("opts", [[], ["SOLVER.ACCUMULATION_STEPS", "2"]])
def test_training_in_bfloat16(tiny_config, opts):
    cfg = tiny_config(MASK_RCNN, *BFLOAT16, *opts)
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 2, 0, ()
    trainer = Trainer(cfg)
    inner = trainer._trainer
    assert isinstance(inner, AMPTrainer) and inner.precision == torch.bfloat16
    assert not inner.grad_scaler.is_enabled()
    seen = dtypes(trainer.model)
    before = trainer.model.backbone.fpn_output2.weight.detach().clone()
    trainer.train()
    assert seen == {torch.bfloat16}
    after = trainer.model.backbone.fpn_output2.weight
    assert after.dtype == torch.float32 and torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_one_step_is_near_that_of_float32(tiny_config):
    losses = []
    for opts in ([], BFLOAT16):
        cfg = tiny_config(MASK_RCNN, *opts)
        cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 1, 0, ()
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.train()
        losses.append(trainer.storage.history("total_loss").latest())
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_evaluation_in_bfloat16(tiny_config):
    cfg = tiny_config(MASK_RCNN, "TEST.PRECISION", "bfloat16")
    model = Trainer.build_model(cfg)
    seen = dtypes(model)
    results = Trainer.test(cfg, model)
    assert set(results) == {"bbox", "segm"} and seen == {torch.bfloat16}


def test_float16_on_the_cpu_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"SOLVER\.AMP\.DTYPE.*bfloat16"):
        Trainer(tiny_config(MASK_RCNN, *AMP))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "scaled"), [("float16", True), ("bfloat16", False)])
def test_on_a_gpu(tiny_config, dtype, scaled):
    cfg = tiny_config(MASK_RCNN, *AMP, "SOLVER.AMP.DTYPE", dtype, "MODEL.DEVICE", "cuda")
    cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 0, ()
    trainer = Trainer(cfg)
    assert trainer._trainer.grad_scaler.is_enabled() == scaled
    seen = dtypes(trainer.model)
    trainer.train()
    assert seen == {getattr(torch, dtype)}
