"""Micro-batches compute what processes compute; clipping, scaling and logging are once a step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from processes import START_METHOD
from tiny import FEW_PROPOSALS, allow_double, register_tiny_digits
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from gnws_d2.engine import Trainer
from gnws_d2.engine.accumulation import AccumulatingTrainer, fused, micro_batches
from gnws_d2.errors import ConfigError

CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
STEPS = "SOLVER.ACCUMULATION_STEPS"

# Images of two sizes, flipped by chance, and an IoU of 0.3, so that they differ in their numbers of
# foreground proposals; of anchors and proposals some are drawn.
OPTIONS = [
    *FEW_PROPOSALS,
    *("INPUT.MIN_SIZE_TRAIN", "(48, 64)", "INPUT.RANDOM_FLIP", "horizontal"),
    *("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3]", "DATASETS.TEST", "()"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.02"),
]


class DoubleTrainer(Trainer):
    """Trains in float64."""

    @classmethod
    def build_model(cls, cfg):
        return super().build_model(cfg).double()


def train(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """A training from a fixed start: its losses (losses, iterations), gradients (iterations,
    parameters) and final weights (parameters,)."""
    torch.manual_seed(0)
    trainer = DoubleTrainer(cfg)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    gradients = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    )
    trainer.train()
    names = [n for n in trainer.storage.histories() if n.startswith(("loss_", "total_loss"))]
    losses = [[v for v, _ in trainer.storage.history(n).values()] for n in sorted(names)]
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "gradients": torch.stack(gradients),
        "weights": torch.cat([p.detach().flatten() for p in parameters]),
    }


def train_in_process(rank: int, count: int, cfg: CfgNode, digits: Path, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=count)
    comm.create_local_process_group(count)
    register_tiny_digits(digits)
    with pytest.MonkeyPatch.context() as patch:
        allow_double(patch)
        run = train(cfg)
    if rank == 0:
        torch.save(run, folder / "run.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_micro_batches_compute_what_processes_compute(tiny_config, digits, double, tmp_path):
    """Four micro-batches of two images, in one process, and in two that run two each."""
    one, two = (
        tiny_config(CONFIG, *OPTIONS, "SOLVER.IMS_PER_BATCH", "8", STEPS, n) for n in ("4", "2")
    )
    arguments = (2, two, digits, tmp_path)
    mp.start_processes(train_in_process, arguments, nprocs=2, start_method=START_METHOD)
    processes, micro_batches = torch.load(tmp_path / "run.pth"), train(one)
    differences = [(value - micro_batches[key]).abs().max() for key, value in processes.items()]
    print("largest differences of losses, gradients, weights:", *map("{:.1e}".format, differences))
    assert processes["losses"].shape == (6, 2) and processes["losses"].isfinite().all()
    assert all(gradients.abs().max() > 0.01 for gradients in processes["gradients"])
    assert all(difference < 1e-10 for difference in differences)


def test_a_batch_that_does_not_divide_is_refused(tiny_config, monkeypatch):
    four = ["SOLVER.IMS_PER_BATCH", "4"]
    with pytest.raises(ConfigError, match=rf"is 4.*1 processes with {STEPS} 3.*multiple of 3"):
        Trainer(tiny_config(CONFIG, *four, STEPS, "3"))
    monkeypatch.setattr("gnws_d2.engine.trainer.comm.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=rf"is 4.*2 processes with {STEPS} 4.*multiple of 8"):
        Trainer(tiny_config(CONFIG, *four, STEPS, "4"))
    with pytest.raises(ConfigError, match=rf"{STEPS} is 2, but the train loader .* of 3 images"):
        micro_batches([1, 2, 3], 2)


# The rest is shown by a model that has nothing to draw or to pad.


class Regression(nn.Module):
    """Takes pairs of numbers, logs one number, and gives two losses that are means over them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.Linear(8, 1))
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                generator = torch.Generator().manual_seed(i)
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        x, y = torch.stack(batch).to(self.layers[0].weight).split([3, 1], dim=1)
        error = self.layers(x) - y
        get_event_storage().put_scalar("seen", len(batch))
        return {"loss_square": error.square().mean(), "loss_absolute": error.abs().mean()}


def fit(make=AccumulatingTrainer, model=None, iterations=3, clip=0.0, **options) -> SimpleNamespace:
    """Train a model for some iterations with the trainer of ``make(model, data, optimizer)``."""
    model = model or Regression().double()
    numbers = torch.randn(iterations, 8, 4, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if clip:
        cfg = get_cfg()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clip
        maybe_add_gradient_clipping(cfg, optimizer)
    data = [list(batch) for batch in numbers]
    trainer = make(model, data, fused(optimizer), **options)  # Detectron2's as well
    if options.get("precision") == torch.float16:
        trainer.grad_scaler = GradScaler("cpu", init_scale=1024, growth_interval=2)
    trainer.train(0, iterations)
    histories = trainer.storage.histories().items()
    losses = {name: [v for v, _ in history.values()] for name, history in histories}
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return SimpleNamespace(trainer=trainer, weights=weights, **losses)


class OneLoss(Regression):
    def forward(self, batch):
        return sum(super().forward(batch).values())


@pytest.mark.parametrize("kind", [Regression, OneLoss])
def test_one_micro_batch_is_the_step_of_detectron2_bit_for_bit(kind):
    ours, theirs = (
        vars(fit(make, kind().double())) for make in (AccumulatingTrainer, SimpleTrainer)
    )
    assert torch.equal(ours["weights"], theirs["weights"])
    names = {name for name in theirs if "loss" in name}
    assert names >= {"total_loss"} and all(ours[name] == theirs[name] for name in names)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_complete_gradients_are_clipped_and_the_losses_of_the_batch_are_logged(clip):
    whole, parts = fit(SimpleTrainer, clip=clip), fit(steps=4, clip=clip)
    assert torch.allclose(whole.weights, parts.weights, rtol=1e-13, atol=1e-13)
    assert bool(clip) == (not torch.equal(whole.weights, fit(SimpleTrainer).weights))
    for name in ("total_loss", "loss_square", "loss_absolute"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-13)
    assert len(parts.data_time) == 3
    assert parts.seen == [2] * 12


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_scales_each_step_once(precision):
    whole, parts = (fit(model=Regression(), steps=n, precision=precision) for n in (1, 4))
    # Equal to the batch in one piece up to its own rounding, and near to full precision.
    assert torch.allclose(whole.weights, parts.weights, atol=20 * torch.finfo(precision).eps)
    full = fit(SimpleTrainer).weights.float()
    assert torch.allclose(full, parts.weights, atol=20 * torch.finfo(precision).eps)
    assert not torch.equal(full, parts.weights)
    # Three steps, not twelve: one growth. bfloat16 needs no scale.
    scale = parts.trainer.grad_scaler.get_scale()
    assert scale == (2048 if precision == torch.float16 else 1)
    state = parts.trainer.state_dict()
    for found in (whole.trainer, fit().trainer):  # also resumed in another precision
        found.load_state_dict(state)
    assert whole.trainer.grad_scaler.state_dict() == state["grad_scaler"]


def test_one_micro_batch_out_of_range_skips_the_whole_step():
    class Overflows(Regression):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            factor = float("inf") if self.calls == 2 else 1.0
            losses = super().forward(batch)
            # Only its gradient is out of range.
            losses["loss_square"].register_hook(lambda grad: grad * factor)
            return losses

    done = fit(model=Overflows(), iterations=1, steps=4, precision=torch.float16)
    before = torch.cat([p.detach().flatten() for p in Regression().parameters()])
    assert torch.equal(done.weights, before)
    assert done.trainer.grad_scaler.get_scale() == 512


def test_gradients_are_exchanged_once_a_step(tmp_path):
    exchanged = []

    def hook(state, bucket):
        exchanged.append(bucket.buffer().clone())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(Regression().double())
        model.register_comm_hook(None, hook)
        parts = fit(model=model, iterations=1, steps=4)
    finally:
        dist.destroy_process_group()
    assert len(exchanged) == 1
    whole = fit(SimpleTrainer, iterations=1)
    assert torch.allclose(whole.weights, parts.weights, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_fused_step_is_the_plain_one(nesterov, clips):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clips, 0.1
    kind = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    ended = []
    for wrap in (fused, lambda optimizer: optimizer):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(3))]
        groups = [{"params": [w], "weight_decay": i * 0.1} for i, w in enumerate(weights)]
        optimizer = wrap(kind(groups, lr=0.1, momentum=0.9, nesterov=nesterov))
        scaler = GradScaler("cpu", init_scale=64.0)  # whose scale no clipping may see
        for _ in range(5):
            optimizer.zero_grad()
            loss = sum((w**2).sum() for w in weights)
            scaler.scale(loss).backward()
            versions = [w._version for w in weights]
            scaler.step(optimizer)
            scaler.update()
            assert all(w._version > v for w, v in zip(weights, versions, strict=True))
        ended.append([w.detach() for w in weights])
    assert fused(optimizer).param_groups[0]["fused"]  # the kernel is there
    for one, other in zip(*ended, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_what_a_user_chose_and_other_optimizers_stay():
    weights = [nn.Parameter(torch.zeros(3))]
    chosen = torch.optim.SGD(weights, lr=0.1, fused=False)
    assert fused(chosen).param_groups[0]["fused"] is False
    other = torch.optim.AdamW(weights)
    assert fused(other).param_groups[0]["fused"] is None
    elsewhere = torch.optim.SGD([nn.Parameter(torch.zeros(3, device="meta"))], lr=0.1)
    assert fused(elsewhere).param_groups[0]["fused"] is None
