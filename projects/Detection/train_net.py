#!/usr/bin/env python3
"""Train or evaluate a detector, on GPUs or on the CPU: ``train_net.py --help``."""

from gnws import openmp  # before torch

# isort: split
import argparse
import contextlib
import functools
import logging
import math
import shlex
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

import gnws_d2
import gnws_d2.projects.digits  # registers the datasets
from gnws.arguments import parse
from gnws.upstream import quiet
from gnws_d2 import engine
from gnws_d2.checkpoint import Checkpointer, local_path, read_checkpoint
from gnws_d2.checkpoint.provenance import store_threshold
from gnws_d2.checkpoint.resume import from_main_process, named_checkpoint
from gnws_d2.checkpoint.structure import build_on_meta
from gnws_d2.config import portable_config, resolve_config_file
from gnws_d2.data import load_train_dataset
from gnws_d2.engine import launch, locked_output, scale_schedule
from gnws_d2.engine.hooks import MAIN_METRICS
from gnws_d2.engine.schedule import in_iterations
from gnws_d2.errors import ConfigError
from gnws_d2.files import restored
from gnws_d2.predictor import config_of
from gnws_d2.projects import own_data, report
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config
from gnws_d2.projects.detection.defaults import (
    FirstIterations,
    default_setup,
    evaluation_folder,
    setup_loggers,
)
from gnws_d2.projects.detection.trackers import WINDOW, open_tracker

logger = logging.getLogger("gnws_d2")

ADD_CONFIGS = [add_acceleration_config]


@dataclass(frozen=True)
class Outcome:
    """What a training or an evaluation ends with."""

    weights: str  # the checkpoint that the results are of; after training the best, else the last
    results: dict[str, dict[str, float]]  # in percent: results["valid/mine.json"]["bbox/AP"]
    reports: list[Path]
    threshold: float | None  # the score that the reports suggest
    output: Path  # OUTPUT_DIR


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

    Without ``--config-file`` it is that of the weights if a checkpoint is evaluated, whose run is
    then in their folder, and else one for the data and the device.
    """
    splits = own_data.data_splits(args)
    opts = [*own_data.data_opts(args, splits, eval_only=args.eval_only), *args.opts]
    if args.config_file.endswith(".py"):
        raise ConfigError(f"{args.config_file} is a LazyConfig. Use lazyconfig_train_net.py.")
    file = resolve_config_file(args.config_file)
    if not file and args.eval_only:
        cfg = config_of(args.weights or "", opts, ADD_CONFIGS)
        if "OUTPUT_DIR" not in opts[::2]:
            is_local = "://" not in args.weights
            cfg.OUTPUT_DIR = str(Path(args.weights).parent) if is_local else "output"
        return cfg, "", opts
    if not file and not splits["train"]:
        raise ConfigError(
            "neither a config nor data is named. Add --data FOLDER to train on your own images, or "
            "--config-file; `gnws zoo list` shows the packaged configs."
        )
    if not file:
        given = dict(zip(opts[::2], opts[1::2], strict=False))
        chosen = given.get("MODEL.DEVICE", "cuda"), given.get("MODEL.WEIGHTS")
        file = resolve_config_file(own_data.choose_config(splits["train"], *chosen))
    return gnws_d2.load_config(file, opts, ADD_CONFIGS), file, opts


def setup(
    args: argparse.Namespace, cfg: CfgNode, file: str, opts: list[str], began: float
) -> CfgNode:
    """Fit the config to the data and its schedule to both, and set up Detectron2."""
    setup_loggers(cfg.OUTPUT_DIR)
    if args.eval_only:
        logger.info("The results of this evaluation are written to %s.", cfg.OUTPUT_DIR)
    explicit = own_data.explicit_keys(file, opts)
    if not args.eval_only:
        if not args.config_file:
            why = "" if "MODEL.WEIGHTS" in explicit else own_data.why_chosen(file)
            logger.info("No config was named. For this data and device: %s%s.", file, why)
        own_data.start_from_detector(cfg, file, explicit)
    args.config_file = file
    check = functools.partial(check_weights, for_inference=args.eval_only)
    resumed = named_checkpoint(Path(cfg.OUTPUT_DIR))[1] if args.resume else None
    keys = None if args.eval_only else explicit
    cfg = own_data.fit_to_data(cfg, None if args.resume else check, keys, str(resumed or ""))
    if not args.eval_only:
        processes = comm.get_world_size()
        if any(map(own_data.is_source, cfg.DATASETS.TRAIN)):
            if cfg.SOLVER.MINUTES and resumed:
                explicit |= own_data.as_in(config_of(str(resumed), (), ADD_CONFIGS), cfg)
            images, packaged = len(load_train_dataset(cfg)), own_data.packaged_config(file)
            cfg = own_data.schedule_for(cfg, images, processes, explicit, packaged, began)
        else:
            own_data.check_lengths(cfg, opts[::2])
            cfg = in_iterations(scale_schedule(cfg, processes), opts[::2])
    if cfg.MODEL.DEVICE == "cpu" and openmp.is_set_here:
        logger.info(
            "%s is %s: on a CPU that other programs use, too, a step waits less. Set it, or %s, "
            "to choose another value.",
            *(openmp.VARIABLES[0], openmp.SPINS, openmp.VARIABLES[1]),
        )
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


def evaluate_only(args: argparse.Namespace, cfg: CfgNode, run_folder: str) -> Outcome | None:
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, run_folder, cfg=cfg, for_inference=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    weights = str(checkpointer.resumed_from or cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    outcome = conclude(cfg, weights, _by_dataset(results, cfg.DATASETS.TEST))
    if comm.is_main_process():
        verify_results(cfg, results)
    return outcome


def train(args: argparse.Namespace, cfg: CfgNode, trainer: Trainer) -> Outcome | None:
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT:
        logger.warning(
            "MODEL.WEIGHTS is empty, and MODEL.BACKBONE.FREEZE_AT %d keeps the first stages at "
            "their random values. Name the weights of a backbone, or set FREEZE_AT to 0.",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        own = filter(own_data.is_source, cfg.DATASETS.TEST)
        images = sum(len(DatasetCatalog.get(name)) for name in own)
        images += min(images, cfg.TEST.LOSS_IMAGES)  # the loss of one takes about as long
        steps = images / cfg.SOLVER.IMS_PER_BATCH
        trainer.register_hooks([FirstIterations(steps, cfg.TEST.EVAL_PERIOD)])
        writers = [open_tracker(name, cfg, args.resume) for name in args.logger]
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=WINDOW)])
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model))]
        )
    trainer.train()
    return evaluate_best(trainer, cfg)


def evaluate_best(trainer: Trainer, cfg: CfgNode) -> Outcome | None:
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
    names, results = list(cfg.DATASETS.FINAL_TEST), getattr(trainer, "_last_eval_results", {})
    results = _by_dataset(results, cfg.DATASETS.TEST)
    if checkpoint is not None:
        Checkpointer(trainer.model).model.load_state_dict(checkpoint["model"])
        if checkpoint["iteration"] != trainer.max_iter - 1:
            names = [*names, *(name for name in cfg.DATASETS.TEST if name not in names)]
            logger.info("Evaluating %s", best)
        weights = best
    if names:
        evaluated = cfg.clone()
        evaluated.defrost()
        evaluated.DATASETS.TEST = tuple(names)
        evaluators = [Trainer.build_evaluator(cfg, name) for name in names]
        found = Trainer.test(evaluated, trainer.model, evaluators)
        results = {**results, **_by_dataset(found, names)}
    outcome = conclude(cfg, str(weights), results)
    if outcome and outcome.threshold is not None:
        store_threshold(weights, outcome.threshold)
    return outcome


def conclude(
    cfg: CfgNode, weights: str, results: Mapping[str, Mapping[str, Any]]
) -> Outcome | None:
    """Write the reports, and log what a person wants to know at the end: the results of ``weights``
    in percent, by dataset, the reports, and the command to go on with. In other processes than the
    main one, do nothing, and return None."""
    if not comm.is_main_process():
        return None
    pages = report.try_report(cfg, weights)
    lines = [f"Results of {weights}, in percent:" if results else f"Weights: {weights}"]
    shared, flat = Counter(map(own_data.short_name, results)), {}
    for full, found in results.items():
        short = own_data.short_name(full)
        name = short if shared[short] == 1 else full
        flat[name] = {key: float(value) for key, value in flatten_results_dict(found).items()}
        values = {metric: flat[name][metric] for metric in MAIN_METRICS if metric in flat[name]}
        shown = ", ".join(f"{metric} {value:.1f}" for metric, value in values.items())
        if any(map(math.isnan, values.values())):
            shown += " (undefined: no detections, or no annotations)"
        lines.append(f"  {name}: {shown or 'nothing was detected'}")
    lines += [f"Report: {page}" for page in pages]
    threshold = report.suggested_threshold(cfg, pages)
    if threshold is not None:
        lines.append(f"Suggested score threshold, with the highest F1: {threshold:.2f}")
    lines.append(f"To detect: gnws predict --weights {shlex.quote(weights)} --input FOLDER")
    logger.info("\n".join(lines))
    return Outcome(weights, flat, pages, threshold, Path(cfg.OUTPUT_DIR))


def _weights_of(file: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(str(file))
    return {name: checkpoint[name] for name in ("model", "iteration")}


def _by_dataset(results: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What Detectron2's ``test`` returns, which leaves out the name of a dataset that is alone."""
    return {names[0]: results} if len(names) == 1 else results


def run(args: argparse.Namespace) -> Outcome | None:
    """What each process does. The main process returns what it found."""
    began = time.monotonic()
    with contextlib.ExitStack() as held:
        with own_data.kept_files():  # each annotation file is read once
            cfg, file, opts = read_config(args)
            run_folder = cfg.OUTPUT_DIR
            if args.eval_only:
                is_chosen = bool(file) or "OUTPUT_DIR" in opts[::2]
                cfg.OUTPUT_DIR = evaluation_folder(run_folder, is_chosen)
                if args.resume:  # the saved config names what is evaluated
                    newest = named_checkpoint(Path(run_folder))[1]
                    cfg.MODEL.WEIGHTS = str(newest or cfg.MODEL.WEIGHTS)
            else:
                held.enter_context(locked_output(cfg.OUTPUT_DIR))
            # A run that is refused before it trains leaves the config of the one before it.
            undo = held.enter_context(restored(Path(cfg.OUTPUT_DIR, "config.yaml")))
            cfg = setup(args, cfg, file, opts, began)
            trainer = None if args.eval_only else Trainer(cfg)
        if trainer is None:
            undo.pop_all()
            return evaluate_only(args, cfg, run_folder)
        trainer.register_hooks([hooks.CallbackHook(before_train=lambda _: undo.pop_all())])
        return train(args, cfg, trainer)


def device_of(args: argparse.Namespace) -> str:
    """MODEL.DEVICE of :func:`read_config`, without reading data."""
    if args.eval_only and not args.config_file:
        return config_of(args.weights, args.opts, ADD_CONFIGS).MODEL.DEVICE
    return gnws_d2.load_config(args.config_file, args.opts, ADD_CONFIGS).MODEL.DEVICE


def main(args: argparse.Namespace) -> None:
    processes = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    launch(run, *processes, args=(args,), device=lambda: device_of(args))


if __name__ == "__main__":
    main(parse("train"))
