"""Micro-batches add up to the step of the whole batch: loss, weights, clipping, scale, resuming."""

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gnws_d2.config import ConfigError
from gnws_d2.engine import Trainer
from gnws_d2.engine.accumulation import AccumulatingAMPTrainer, AccumulatingTrainer
from gnws_d2.engine.large_batch import check_known, share_out, taking
from gnws_d2.engine.resume import ResumableLoader

CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
STEPS = "SOLVER.ACCUMULATION_STEPS"
NORMALIZER = "SOLVER.ACCUMULATION_NORMALIZER"

# Pictures of two sizes, and an IoU of 0.3, so that they differ in their numbers of foreground
# proposals; of anchors and proposals some are drawn.
DIFFERENT = ["INPUT.MIN_SIZE_TRAIN", "(64, 96)", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3]"]
FOUR_IMAGES = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"]


def train(cfg: CfgNode, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """(the losses of each iteration, all weights after the last), of a run from a fixed start."""
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.model.to(dtype)
    trainer.train()
    names = [n for n in trainer.storage.histories() if n.startswith(("loss_", "total_loss"))]
    losses = [[v for v, _ in trainer.storage.history(n).values()] for n in sorted(names)]
    weights = [p.detach().double().flatten() for p in trainer.model.parameters()]
    return torch.tensor(losses, dtype=torch.float64), torch.cat(weights)


def deviation(run: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> tuple[float, ...]:
    """(relative, of the losses; absolute, of the weights): the largest."""
    losses = ((run[0] - other[0]) / run[0]).abs().max()
    return float(losses), float((run[1] - other[1]).abs().max())


@pytest.fixture
def large(tiny_config, double):
    """A run with batches in one piece."""
    return train(tiny_config(CONFIG, *DIFFERENT, *FOUR_IMAGES))


@pytest.mark.slow
def test_a_detector_takes_the_steps_of_the_large_batch(tiny_config, large):
    cfg = tiny_config(CONFIG, *DIFFERENT, *FOUR_IMAGES, STEPS, "4")
    losses, weights = deviation(large, train(cfg))
    print(f"losses {losses:.1e}, weights {weights:.1e}")
    assert losses < 1e-10 and weights < 1e-10

    # Not so where each micro-batch is padded, sampled and divided by its own counts.
    cfg.SOLVER.ACCUMULATION_NORMALIZER = "micro_batch"
    losses, weights = deviation(large, train(cfg))
    print(f"micro_batch: losses {losses:.1e}, weights {weights:.1e}")
    assert losses > 1e-3


@pytest.mark.slow
def test_a_run_resumed_in_the_middle_ends_as_an_unbroken_one(tiny_config, tmp_path):
    class Breaks(Trainer):
        def before_step(self):
            super().before_step()
            if self.iter == 2:
                raise KeyboardInterrupt

    opts = [STEPS, "2", "SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()"]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "2"]
    unbroken = tiny_config(CONFIG, *opts, "OUTPUT_DIR", str(tmp_path / "unbroken"))
    _, expected = train(unbroken, torch.float32)
    cfg = tiny_config(CONFIG, *opts)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        Breaks(cfg).train()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    weights = [p.detach().double().flatten() for p in trainer.model.parameters()]
    assert torch.equal(torch.cat(weights), expected)


@pytest.fixture
def counted(tiny_config):
    """(a model with BatchNorm, four pictures)."""
    cfg = tiny_config("Digits/mask_rcnn_R_18_FPN_bn.yaml", "SOLVER.IMS_PER_BATCH", "4")
    torch.manual_seed(0)
    return build_model(cfg).train(), next(iter(ResumableLoader(cfg)))


def test_sharing_out_a_batch_leaves_no_trace(counted):
    model, batch = counted
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with EventStorage() as storage:
        share_out(model, [batch[:1], batch[1:]], nullcontext)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not storage.histories()


def test_weights_follow_what_a_micro_batch_counts(counted):
    model, batch = counted
    parts = [batch[:1], batch[1:]]
    shares = share_out(model, parts, nullcontext)
    counts = defaultdict(list)  # Detectron2's own
    for part, share in zip(parts, shares, strict=True):
        with EventStorage() as storage, taking(model, share):
            losses = model(part)
        logged = {name.split("/")[-1]: value for name, (value, _) in storage.latest().items()}
        foreground, background = (logged[f"num_{kind}_samples"] for kind in ("fg", "bg"))
        counts["loss_mask"].append(foreground * len(part))
        for name in ("loss_cls", "loss_box_reg"):
            counts[name].append((foreground + background) * len(part))
        for name in ("loss_rpn_cls", "loss_rpn_loc"):
            counts[name].append(len(part))
    assert set(counts) == set(losses) == set(shares[0].weights)
    assert "preprocess_image" not in vars(model) and not model.roi_heads._forward_pre_hooks
    for name, (first, second) in counts.items():
        assert min(first, second) > 0
        share = first / (first + second)
        assert [s.weights[name] for s in shares] == pytest.approx([share, 1 - share])


def test_a_loss_that_cannot_be_counted_is_refused_with_the_cure(tiny_config):
    keypoints = ["MODEL.KEYPOINT_ON", "True", "MODEL.WS.PARTS", "['backbone']"]
    retina = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.WS.PARTS", "[]"]
    retina += ["MODEL.RETINANET.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p2']"]
    cascade = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.WS.PARTS", "['backbone']"]
    cascade += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    for opts, said in (
        (keypoints, "keypoint loss"),
        (retina, "the model is a RetinaNet"),
        (cascade, "roi_heads is a CascadeROIHeads"),
    ):
        with pytest.raises(ConfigError, match=rf'{NORMALIZER} is "batch".*{said}.*"micro_batch"'):
            check_known(build_model(tiny_config(CONFIG, *opts)))


def test_a_batch_that_does_not_divide_is_refused(tiny_config, monkeypatch):
    with pytest.raises(ConfigError, match=rf"{STEPS} is 3.*IMS_PER_BATCH, 4.*divisor of 4"):
        tiny_config(CONFIG, *FOUR_IMAGES, STEPS, "3")
    monkeypatch.setattr("gnws_d2.engine.trainer.comm.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=rf"is 4.*2 processes with {STEPS} 4.*multiple of 8"):
        Trainer(tiny_config(CONFIG, *FOUR_IMAGES, STEPS, "4"))


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
    return lambda *args: kind(*args, steps=steps, normalizer="micro_batch")


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
    opts = [*FOUR_IMAGES, "SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda"]
    losses, weights = train(tiny_config(CONFIG, *opts, STEPS, "2"), torch.float32)
    assert losses.isfinite().all() and weights.isfinite().all()


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
