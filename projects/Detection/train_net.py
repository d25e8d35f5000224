#!/usr/bin/env python3
"""Train or evaluate a detector, on GPUs or on the CPU: ``train_net.py --help``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

import gnws_d2
import gnws_d2.projects.digits  # registers the datasets
from gnws.arguments import parse
from gnws.upstream import quiet
from gnws_d2 import engine
from gnws_d2.checkpoint import Checkpointer, local_path, read_checkpoint
from gnws_d2.checkpoint.resume import from_main_process
from gnws_d2.checkpoint.structure import build_on_meta
from gnws_d2.config import portable_config, resolve_config_file
from gnws_d2.data import load_train_dataset
from gnws_d2.engine import launch, locked_output, scale_schedule
from gnws_d2.errors import ConfigError
from gnws_d2.predictor import config_of
from gnws_d2.projects import own_data, report
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config
from gnws_d2.projects.detection.defaults import FirstIterations, default_setup, setup_loggers

logger = logging.getLogger("gnws_d2")

ADD_CONFIGS = [add_acceleration_config]


class Trainer(engine.Trainer):
    """Runs the model as the keys of projects/Acceleration say, and shows images in TensorBoard."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return accelerate(super().build_model(cfg), cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        evaluators = super().build_evaluator(cfg, dataset_name, output_folder)
        for evaluator in getattr(evaluators, "_evaluators", [evaluators]):
            if isinstance(evaluator, engine.COCOEvaluator):
                images = report.PredictionImages(dataset_name, evaluator._coco_api)
                return DatasetEvaluators([evaluators, images])
        return evaluators

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with test-time augmentation; the result's names end in ``_TTA``."""
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())


def read_config(args: argparse.Namespace) -> tuple[CfgNode, str, list[str]]:
    """The config that the arguments describe, its file, and its overrides.

    Without ``--config-file`` it is that of the weights if a checkpoint is evaluated, and else one
    for the data and the device.
    """
    splits = own_data.data_splits(args)
    opts = [*own_data.data_opts(args, splits, eval_only=args.eval_only), *args.opts]
    for key, value in (("MODEL.WEIGHTS", args.weights), ("SOLVER.EPOCHS", args.epochs)):
        if value is not None:
            opts = [key, value, *opts]
    if args.config_file.endswith(".py"):
        raise ConfigError(f"{args.config_file} is a LazyConfig. Use lazyconfig_train_net.py.")
    file = resolve_config_file(args.config_file)
    if not file and args.eval_only:
        return config_of(args.weights or "", opts, ADD_CONFIGS), "", opts
    if not file and not splits["train"]:
        raise ConfigError(
            "neither a config nor data is named. Add --data FOLDER to train on your own images, or "
            "--config-file; `gnws zoo list` shows the packaged configs."
        )
    file = file or resolve_config_file(own_data.choose_config(splits["train"]))
    return gnws_d2.load_config(file, opts, ADD_CONFIGS), file, opts


def setup(args: argparse.Namespace, cfg: CfgNode, file: str, opts: list[str]) -> CfgNode:
    """Fit the config to the data and its schedule to both, and set up Detectron2."""
    setup_loggers(cfg.OUTPUT_DIR)
    explicit = own_data.explicit_keys(file, opts)
    if not args.eval_only:
        if not args.config_file:
            logger.info("No config was named. For this data and device: %s", file)
        own_data.start_from_detector(cfg, file, explicit)
    args.config_file = file
    check = functools.partial(check_weights, for_inference=args.eval_only)
    cfg = own_data.fit_to_data(cfg, check=None if args.resume else check)
    if not args.eval_only:
        processes = comm.get_world_size()
        if any(map(own_data.is_source, cfg.DATASETS.TRAIN)):
            images, packaged = len(load_train_dataset(cfg)), own_data.packaged_config(file)
            cfg = own_data.schedule_for(cfg, images, processes, explicit, packaged)
        else:
            cfg = scale_schedule(cfg, processes)
    cfg.freeze()
    default_setup(portable_config(cfg), args)
    return cfg


def check_weights(cfg: CfgNode, for_inference: bool = False) -> None:
    """Raise CheckpointError if ``MODEL.WEIGHTS`` cannot be loaded into the model of ``cfg``, before
    anything else takes time or memory.

    Args:
        for_inference: see :class:`Checkpointer`.
    """
    local_path(cfg.MODEL.WEIGHTS)  # logs that it downloads
    with quiet():  # loading logs it all again, and torch warns that nothing is copied
        model = build_on_meta(cfg)
        Checkpointer(model, cfg=cfg, for_inference=for_inference).load(cfg.MODEL.WEIGHTS)


def evaluate_only(args: argparse.Namespace, cfg: CfgNode) -> None:
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, cfg=cfg, for_inference=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = evaluate(model, cfg, cfg.DATASETS.TEST, cfg.MODEL.WEIGHTS)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)


def train(args: argparse.Namespace, cfg: CfgNode, trainer: Trainer) -> None:
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT:
        logger.warning(
            "MODEL.WEIGHTS is empty, and MODEL.BACKBONE.FREEZE_AT %d keeps the first stages at "
            "their random values. Name the weights of a backbone, or set FREEZE_AT to 0.",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        trainer.register_hooks([FirstIterations()])
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model))]
        )
    trainer.train()
    evaluate_best(trainer, cfg)


def evaluate_best(trainer: Trainer, cfg: CfgNode) -> None:
    """Evaluate the best checkpoint: on DATASETS.TEST if it is not the last one, which has been
    evaluated, and on DATASETS.FINAL_TEST. Then write the report."""
    weights = Path(cfg.OUTPUT_DIR, "model_final.pth")
    best = weights.with_name("model_best.pth")
    # A file that this run has not kept is of an earlier one in the folder.
    is_kept = bool(cfg.TEST.BEST_METRIC and cfg.DATASETS.TEST)
    # The main process alone is sure to see its file.
    checkpoint = from_main_process(
        lambda: _weights_of(best) if is_kept and best.is_file() else None
    )
    names = list(cfg.DATASETS.FINAL_TEST)
    if checkpoint is not None:
        Checkpointer(trainer.model).model.load_state_dict(checkpoint["model"])
        if checkpoint["iteration"] != trainer.max_iter - 1:
            names += cfg.DATASETS.TEST
            logger.info("Evaluating %s", best)
        weights = best
    evaluate(trainer.model, cfg, names, str(weights))


def _weights_of(file: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(str(file))
    return {name: checkpoint[name] for name in ("model", "iteration")}


def evaluate(model: nn.Module, cfg: CfgNode, names: Sequence[str], weights: str) -> dict[str, Any]:
    """Evaluate ``model`` on the datasets ``names``, and report on all that have been evaluated."""
    evaluated = cfg.clone()
    evaluated.defrost()
    evaluated.DATASETS.TEST = tuple(names)
    evaluators = [Trainer.build_evaluator(cfg, name) for name in names]
    results = Trainer.test(evaluated, model, evaluators) if names else {}
    if comm.is_main_process():
        report.try_report(cfg, weights)
    return results


def run(args: argparse.Namespace) -> None:
    """What each process does."""
    cfg, file, opts = read_config(args)
    with contextlib.nullcontext() if args.eval_only else locked_output(cfg.OUTPUT_DIR):
        with own_data.kept_files():  # each annotation file is read once
            cfg = setup(args, cfg, file, opts)
            trainer = None if args.eval_only else Trainer(cfg)
        if trainer is None:
            evaluate_only(args, cfg)
        else:
            train(args, cfg, trainer)


def main(args: argparse.Namespace) -> None:
    processes = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    launch(run, *processes, args=(args,))


if __name__ == "__main__":
    main(parse("train"))
