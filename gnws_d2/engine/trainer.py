"""Detectron2's DefaultTrainer, with evaluation, exact resuming, data parallelism on the CPU, and
gradient accumulation."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, defaults, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..checkpoint import Checkpointer
from ..config import ConfigError
from ..data import fit_to_data
from ..data.images import NamingMapper
from ..data.loading import dataset_errors
from ..data.resize import build_test_augmentation
from ..layers import EstimatedBatchNorm2d
from ..modeling import StandardizationReport
from ..modeling.errors import build_errors
from .accumulation import AccumulatingAMPTrainer, AccumulatingTrainer, check_batch
from .best import BestCheckpointer, EarlyStopping
from .epochs import in_iterations
from .evaluators import build_evaluator
from .launch import create_ddp_model
from .moving_speed import MovingSpeed
from .nonfinite import nonfinite_module_named
from .output_folder import locked_output
from .precision import check_precision, evaluation_precision, set_precision
from .progress import FirstIterations, ProgressBar
from .resume import IterationSeed, ResumableLoader, save_final, seek_data, start_worker
from .schedule import scale_schedule
from .stopping import StopOnSignal, TrainingEnded

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains, evaluates and resumes a config; see ``detectron2.engine.DefaultTrainer``."""

    def __init__(self, cfg: CfgNode) -> None:
        cfg = fit_to_data(cfg)
        cfg = in_iterations(scale_schedule(cfg, comm.get_world_size()))
        check_batch(cfg, comm.get_world_size())
        check_precision(cfg)
        # DefaultTrainer.__init__ has no argument for how it wraps the model.
        with mock.patch.object(defaults, "create_ddp_model", create_ddp_model):
            super().__init__(cfg)
        if cfg.SOLVER.ACCUMULATION_STEPS > 1:
            logger.info(
                "Gradient accumulation: each step of the optimizer runs %d images, as %d "
                "micro-batches of %d in each of %d processes.",
                *(cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS),
                cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION_STEPS // comm.get_world_size(),
                comm.get_world_size(),
            )
        steps, amp = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.AMP.ENABLED
        # Detectron2's own trainer in mixed precision requires a GPU.
        if steps > 1 or (amp and cfg.MODEL.DEVICE == "cpu"):
            kind = AccumulatingAMPTrainer if amp else AccumulatingTrainer
            self._trainer = kind(
                self.model,
                self.data_loader,
                self.optimizer,
                steps=steps,
                before_micro_batch=self._iteration_seed.before_micro_batch,
            )
        if amp:
            set_precision(self._trainer, cfg)

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; process 0 decides what all processes resume."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.checkpointer.resumed_from:
            self.start_iter = self.iter + 1  # the iteration that the checkpoint has finished

    def train(self) -> OrderedDict | None:
        seek_data(self.data_loader, self._iteration_seed.seed, self.start_iter)
        try:
            with locked_output(self.cfg.OUTPUT_DIR):
                save_final(self.checkpointer, self.start_iter, self.max_iter)
                return super().train()
        except TrainingEnded:
            return getattr(self, "_last_eval_results", None)
        finally:
            batches, self._trainer._data_loader_iter_obj = self._trainer._data_loader_iter_obj, None
            if isinstance(batches, Generator):
                batches.close()  # ends the loader's workers

    def run_step(self) -> None:
        with nonfinite_module_named(self.model):
            super().run_step()

    def build_hooks(self) -> list[HookBase | None]:
        # Here, because DefaultTrainer.__init__ hands its own checkpointer to the hooks it builds.
        self.checkpointer = Checkpointer(
            self.model, self.cfg.OUTPUT_DIR, cfg=self.cfg, trainer=weakref.proxy(self)
        )
        self._iteration_seed = IterationSeed(self.cfg.SEED)
        estimated = [m for m in self.model.modules() if isinstance(m, EstimatedBatchNorm2d)]
        moving_speed = [MovingSpeed(self.cfg, estimated)] if estimated else []
        theirs = super().build_hooks()
        evaluation = next(i for i, hook in enumerate(theirs) if isinstance(hook, hooks.EvalHook))
        theirs[evaluation + 1 : evaluation + 1] = self._hooks_after_evaluation()
        if comm.is_main_process():
            theirs += [FirstIterations(), ProgressBar(self._iterations_of_an_epoch())]
        return [self._iteration_seed, *moving_speed, *theirs, StopOnSignal(self.checkpointer)]

    def _iterations_of_an_epoch(self) -> float:
        known = isinstance(self.data_loader, ResumableLoader)
        return self.data_loader.images / self.cfg.SOLVER.IMS_PER_BATCH if known else 0.0

    def _hooks_after_evaluation(self) -> list[HookBase]:
        cfg = self.cfg
        period, metric = cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC
        patience = cfg.SOLVER.EARLY_STOPPING
        if patience and not (period and cfg.DATASETS.TEST):
            raise ConfigError(
                f"SOLVER.EARLY_STOPPING is {patience}, but nothing is evaluated during training: "
                f"TEST.EVAL_PERIOD is {period}, DATASETS.TEST {cfg.DATASETS.TEST}. Set both."
            )
        if not metric or not cfg.DATASETS.TEST:
            return []
        first = cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) > 1 else ""
        best = None
        if comm.is_main_process():
            best = BestCheckpointer(period, self.checkpointer, metric, first)
        stopping = EarlyStopping(period, patience, best) if patience else None
        return [hook for hook in (best, stopping) if hook is not None]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        with build_errors(cfg):
            model = super().build_model(cfg)
        logger.info("Weight Standardization by part:\n%s", StandardizationReport.of(model))
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """The default resumes exactly. An override may return any iterable of batches."""
        return ResumableLoader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        with dataset_errors(cfg, [dataset_name]):
            augmentations = build_test_augmentation(cfg)
            mapper = DatasetMapper(cfg, is_train=False, augmentations=augmentations)
            loader = build_detection_test_loader(cfg, dataset_name, mapper=NamingMapper(mapper))
        loader.worker_init_fn = start_worker
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict:
        with evaluation_precision(cfg):
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with test-time augmentation; the result's names end in ``_TTA``."""
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())
