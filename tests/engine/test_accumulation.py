"""Micro-batches compute what processes compute; clipping, scaling and logging are once a step."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

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
from torch.nn.parallel import DistributedDataParallel

from gnws_d2.engine import Trainer
from gnws_d2.engine.accumulation import AccumulatingAMPTrainer, AccumulatingTrainer, micro_batches
from gnws_d2.engine.data_order import IterationSeed, ResumableLoader
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


class Run(NamedTuple):
    losses: torch.Tensor  # (losses, iterations)
    gradients: torch.Tensor  # (iterations, parameters)
    weights: torch.Tensor  # (parameters,), after the last iteration


def train(cfg: CfgNode) -> Run:
    """A training from a fixed start."""
    torch.manual_seed(0)
    trainer = DoubleTrainer(cfg)
    gradients = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(
            torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])
        )
    )
    trainer.train()
    names = [n for n in trainer.storage.histories() if n.startswith(("loss_", "total_loss"))]
    losses = [[v for v, _ in trainer.storage.history(n).values()] for n in sorted(names)]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return Run(torch.tensor(losses, dtype=torch.float64), torch.stack(gradients), weights)


def train_in_process(rank: int, count: int, cfg: CfgNode, digits: Path, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=count)
    comm.create_local_process_group(count)
    register_tiny_digits(digits)
    with pytest.MonkeyPatch.context() as patch:
        allow_double(patch)
        run = train(cfg)
    if rank == 0:
        torch.save(tuple(run), folder / "run.pth")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_micro_batches_compute_what_processes_compute(tiny_config, digits, double, tmp_path, steps):
    batch = ["SOLVER.IMS_PER_BATCH", "4"]
    cfg = tiny_config(CONFIG, *OPTIONS, *batch, STEPS, str(steps))
    arguments = (2, cfg, digits, tmp_path)
    mp.start_processes(train_in_process, arguments, nprocs=2, start_method=START_METHOD)
    processes = Run(*torch.load(tmp_path / "run.pth"))

    micro_batches = train(tiny_config(CONFIG, *OPTIONS, *batch, STEPS, str(2 * steps)))
    differences = [(a - b).abs().max() for a, b in zip(processes, micro_batches, strict=True)]
    print("largest differences of losses, gradients, weights:", *map("{:.1e}".format, differences))
    assert processes.losses.shape == (6, 2) and processes.losses.isfinite().all()
    assert all(gradients.abs().max() > 0.01 for gradients in processes.gradients)
    assert all(difference < 1e-10 for difference in differences)


def test_micro_batches_get_the_images_and_draws_of_their_processes(tiny_config, monkeypatch):
    monkeypatch.setattr(comm, "all_gather", lambda data: [data])

    def seen(world: int, rank: int, steps: int) -> list[tuple]:
        """Two iterations of a process: of each micro-batch, its images and a random number."""
        monkeypatch.setattr(comm, "get_world_size", lambda: world)
        monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: world)
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        options = [*OPTIONS, "SOLVER.IMS_PER_BATCH", "8", STEPS, str(steps)]
        loader, seed = ResumableLoader(tiny_config(CONFIG, *options)), IterationSeed(5)
        found = []
        for iteration, batch in enumerate(itertools.islice(loader, 2)):
            seed.trainer = SimpleNamespace(iter=iteration)
            for i, part in enumerate(micro_batches(batch, steps)):
                seed.before_micro_batch(i)
                images = [(d["file_name"], float(d["image"].double().sum())) for d in part]
                found.append((images, float(torch.rand(1))))
        return found

    four = [seen(4, rank, 1) for rank in range(4)]
    expected = [four[rank][iteration] for iteration in range(2) for rank in range(4)]
    assert len({str(part) for part in expected}) == 8
    assert seen(1, 0, 4) == expected
    two = [seen(2, rank, 2) for rank in range(2)]
    assert [two[i % 2][2 * (i // 4) + i % 4 // 2] for i in range(8)] == expected


@pytest.mark.slow
def test_a_run_resumed_in_the_middle_ends_as_an_unbroken_one(tiny_config):
    opts = [*OPTIONS, STEPS, "2", "SOLVER.CHECKPOINT_PERIOD", "1"]
    cfg = tiny_config(CONFIG, *opts)
    torch.manual_seed(0)
    unbroken = Trainer(cfg)
    unbroken.train()
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000000.pth")
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 1
    resumed.train()
    expected = unbroken.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.model.state_dict().items())


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

    def forward(self, batch: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        x, y = (
            torch.stack(column).to(self.layers[0].weight) for column in zip(*batch, strict=True)
        )
        error = self.layers(x) - y
        get_event_storage().put_scalar("seen", len(batch))
        return {"loss_square": error.square().mean(), "loss_absolute": error.abs().mean()}


def batches(count: int, size: int = 8) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(5)
    numbers = torch.randn(count, size, 4, generator=generator)
    return [[(row[:3], row[3:]) for row in batch] for batch in numbers]


def fit(make, iterations: int = 3, clip: float = 0.0, model: nn.Module | None = None):
    """Train a model for some iterations with the trainer of ``make(model, data, optimizer)``."""
    model = model or Regression().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if clip:
        cfg = get_cfg()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clip
        maybe_add_gradient_clipping(cfg, optimizer)
    trainer = make(model, batches(iterations), optimizer)
    trainer.train(0, iterations)
    losses = {
        name: [v for v, _ in trainer.storage.history(name).values()]
        for name in ("total_loss", "loss_square", "loss_absolute", "data_time", "seen")
    }
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return SimpleNamespace(trainer=trainer, weights=weights, **losses)


def accumulating(steps: int, kind: type = AccumulatingTrainer):
    return lambda *args: kind(*args, steps=steps)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_gradients_are_clipped_once_they_are_complete(clip):
    whole, parts = fit(SimpleTrainer, clip=clip), fit(accumulating(4), clip=clip)
    assert torch.allclose(whole.weights, parts.weights, rtol=1e-13, atol=1e-13)
    assert bool(clip) == (not torch.equal(whole.weights, fit(SimpleTrainer).weights))


def test_one_loss_an_iteration_is_logged_that_of_the_batch():
    whole, parts = fit(SimpleTrainer), fit(accumulating(4))
    for name in ("total_loss", "loss_square", "loss_absolute"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-13)
    assert len(parts.data_time) == 3
    assert parts.seen == [2] * 12


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_scales_each_step_once(precision):
    def make(steps):
        def trainer(*args):
            made = accumulating(steps, AccumulatingAMPTrainer)(*args)
            made.precision = precision
            made.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=2)
            return made

        return trainer

    whole, parts = (fit(make(steps), model=Regression()) for steps in (1, 4))
    # Equal to the batch in one piece up to its own rounding, and near to full precision.
    assert torch.allclose(whole.weights, parts.weights, atol=20 * torch.finfo(precision).eps)
    full = fit(SimpleTrainer).weights.float()
    assert torch.allclose(full, parts.weights, atol=20 * torch.finfo(precision).eps)
    # Three steps, not twelve: one growth.
    assert parts.trainer.grad_scaler.get_scale() == 2048


def test_one_micro_batch_out_of_range_skips_the_whole_step():
    class Overflows(AccumulatingAMPTrainer):
        parts_done = 0

        def _scale(self, loss):
            self.parts_done += 1
            return super()._scale(loss) * (float("inf") if self.parts_done == 2 else 1)

    def make(*args):
        made = accumulating(4, Overflows)(*args)
        made.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024)
        return made

    model = Regression()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    done = fit(make, iterations=1, model=model)
    assert torch.equal(done.weights, before)
    assert done.trainer.grad_scaler.get_scale() == 512


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_detector_trains_in_half_precision_on_a_gpu(tiny_config):
    opts = [*OPTIONS, "SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda"]
    trainer = Trainer(tiny_config(CONFIG, *opts, STEPS, "2"))
    trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_are_exchanged_once_a_step(one_process):
    exchanged = []

    def hook(state, bucket):
        exchanged.append(bucket.buffer().clone())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model = DistributedDataParallel(Regression().double())
    model.register_comm_hook(None, hook)
    parts = fit(accumulating(4), iterations=1, model=model)
    assert len(exchanged) == 1
    whole = fit(SimpleTrainer, iterations=1)
    assert torch.allclose(whole.weights, parts.weights, rtol=1e-13, atol=1e-13)


def test_the_log_says_that_gradients_are_accumulated(tiny_config, caplog):
    with caplog.at_level("INFO", logger="gnws_d2.engine.trainer"):
        Trainer(tiny_config(CONFIG, STEPS, "2"))
    assert (
        "step of the optimizer runs 2 images, as 2 micro-batches of 1 in each of 1" in caplog.text
    )
