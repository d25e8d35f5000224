"""Training and evaluation in half precision, on the CPU as on a GPU."""

import pytest
import torch
from torch import nn

from gnws_d2.engine import Trainer

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
HALF = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def dtypes(model: nn.Module) -> set[torch.dtype]:
    """A set that will have the types of what convolutions give."""
    seen: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not hasattr(module, "norm"):
            module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        elif isinstance(module, nn.Conv2d) and module.norm is not None:
            module.norm.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    return seen


def trained(cfg) -> tuple[Trainer, set[torch.dtype]]:
    """A trainer that has trained for two iterations, and the types that it computed in."""
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 2, ()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    seen = dtypes(trainer.model)
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize("steps", ["1", "2"])
@pytest.mark.parametrize(
    ("dtype", "device"),
    [
        ("bfloat16", "cpu"),
        pytest.param("bfloat16", "cuda", marks=needs_gpu),
        pytest.param("float16", "cuda", marks=needs_gpu),
    ],
)
def test_training_is_near_that_in_float32(tiny_config, dtype, device, steps):
    opts = ["MODEL.DEVICE", device, "SOLVER.ACCUMULATION_STEPS", steps]
    full, seen = trained(tiny_config(MASK_RCNN, *opts))
    assert seen == {torch.float32}
    half, seen = trained(tiny_config(MASK_RCNN, *opts, *HALF, dtype))
    assert seen == {getattr(torch, dtype)}
    assert half._trainer.grad_scaler.is_enabled() == (dtype == "float16")
    # The first step.
    losses = [t.storage.history("total_loss").values()[0][0] for t in (full, half)]
    assert losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], rel=0.05)
    weights = [t.model.backbone.fpn_output2.weight for t in (full, half)]
    assert weights[1].dtype == torch.float32 and weights[1].isfinite().all()


def test_evaluation_in_bfloat16(tiny_config):
    cfg = tiny_config(MASK_RCNN, "TEST.PRECISION", "bfloat16")
    model = Trainer.build_model(cfg)
    seen = dtypes(model)
    results = Trainer.test(cfg, model)
    assert set(results) == {"bbox", "segm"} and seen == {torch.bfloat16}
