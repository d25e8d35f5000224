"""Detectron2's DefaultTrainer, with evaluation, exact resuming, data parallelism on the CPU, and
gradient accumulation."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint import Checkpointer
from ..data import Mapper, NamingMapper, dataset_errors, load_once, load_train_dataset
from ..errors import ConfigError
from ..files import locked_output
from ..layers import EstimatedBatchNorm2d
from ..modeling import StandardizationReport
from ..modeling.errors import build_errors
from ..modeling.precision import evaluation_precision
from .accumulation import AccumulatingTrainer
from .data_order import (
    IterationSeed,
    ResumableLoader,
    checked_batches,
    map_one,
    save_final,
    seek_data,
    start_worker,
)
from .evaluation import build_evaluator
from .hooks import BestCheckpointer, MovingSpeed, NewestCheckpointer, StopOnSignal, TrainingEnded
from .launch import create_ddp_model
from .schedule import in_iterations, scale_schedule
from .validation_loss import ValidationLoss
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains, evaluates and resumes a config; see ``detectron2.engine.DefaultTrainer``, whose
    methods to override are the same."""

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's, which wraps the model for GPUs alone and has its own checkpointer.
        TrainerBase.__init__(self)
        if logging.getLogger("detectron2").getEffectiveLevel() > logging.INFO:
            setup_logger()
        self.cfg = cfg = in_iterations(scale_schedule(cfg, comm.get_world_size()))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._iteration_seed = IterationSeed(cfg.SEED)

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        map_one(loader)
        amp = cfg.SOLVER.AMP
        self._trainer = AccumulatingTrainer(
            create_ddp_model(model, broadcast_buffers=False),
            loader,
            optimizer,
            steps=cfg.SOLVER.ACCUMULATION_STEPS,
            precision=getattr(torch, amp.DTYPE) if amp.ENABLED else torch.float32,
            before_micro_batch=self._iteration_seed.before_micro_batch,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            self.model, cfg.OUTPUT_DIR, cfg=cfg, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; process 0 decides what all processes resume."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.checkpointer.resumed_from:
            self.start_iter = self.iter + 1  # the iteration that the checkpoint has finished

    def train(self) -> OrderedDict | None:
        seek_data(self.data_loader, self._iteration_seed.seed, self.start_iter)
        try:
            with locked_output(self.cfg.OUTPUT_DIR), checked_batches(self.model, self.data_loader):
                save_final(self.checkpointer, self.start_iter, self.max_iter)
                return super().train()
        except TrainingEnded:
            return getattr(self, "_last_eval_results", None)
        finally:
            self._trainer._data_loader_iter_obj = None  # ends the loader's workers

    def build_hooks(self) -> list[HookBase | None]:
        cfg, hooks = self.cfg, super().build_hooks()
        period, metric = cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC
        patience, tests = cfg.SOLVER.EARLY_STOPPING, cfg.DATASETS.TEST
        if patience and not (period and metric and tests):
            raise ConfigError(
                f"SOLVER.EARLY_STOPPING is {patience}, but no evaluation can improve: "
                f"TEST.EVAL_PERIOD is {period}, TEST.BEST_METRIC {metric!r}, DATASETS.TEST "
                f"{tests}. Set all three."
            )
        for i, hook in enumerate(hooks):  # in the main process
            if isinstance(hook, PeriodicCheckpointer):
                kept = cfg.SOLVER.CHECKPOINTS_KEPT
                hooks[i] = NewestCheckpointer(self.checkpointer, hook.period, kept)
        evaluation = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        if metric and tests:
            first = tests[0] if len(tests) > 1 else ""
            best = BestCheckpointer(period, self.checkpointer, metric, first, patience)
            hooks.insert(evaluation + 1, best)
        model = self.checkpointer.model  # without a wrapper
        if cfg.TEST.LOSS_IMAGES and tests:
            hooks.insert(evaluation, EvalHook(period, ValidationLoss(cfg, model)))
        if estimated := [m for m in model.modules() if isinstance(m, EstimatedBatchNorm2d)]:
            hooks.insert(0, MovingSpeed(cfg, estimated))
        if cfg.SOLVER.EMA_DECAY:
            hooks.insert(0, WeightAverage(model, cfg.SOLVER.EMA_DECAY))
        return [self._iteration_seed, *hooks, StopOnSignal(self.checkpointer)]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        with build_errors(cfg):
            model = super().build_model(cfg)
        logger.info("Weight Standardization by part:\n%s", StandardizationReport.of(model))
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """The default resumes exactly. An override may return any iterable of batches."""
        dataset = load_once(lambda: load_train_dataset(cfg))
        if isinstance(dataset, torch.utils.data.IterableDataset):  # which cannot be resumed
            batch = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION_STEPS
            options = {"dataset": dataset, "mapper": Mapper(cfg), "total_batch_size": batch}
            return build_detection_train_loader(cfg, **options)
        return ResumableLoader(cfg, dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        with dataset_errors([dataset_name]):
            mapper = NamingMapper(Mapper(cfg, is_train=False))
            loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = start_worker
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict:
        with evaluation_precision(cfg), checked_batches(model):
            return super().test(cfg, model, evaluators)
