#!/usr/bin/env python3
"""Train or evaluate a model described by a LazyConfig, Detectron2's configs in Python.

A config is a Python program: what it says is executed, so read one of others before its first
use. The config has Detectron2's usual members: model, dataloader.{train,test,evaluator}, optimizer,
lr_multiplier and train. The arguments are those of ``gnws train --help``.
"""

from gnws import openmp  # noqa: F401  before torch

# isort: split
import argparse
import functools
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detectron2 import evaluation
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import AMPTrainer, SimpleTrainer, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from torch import nn

from gnws.arguments import parse
from gnws_d2 import StandardizationReport
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.config import resolve_config_file
from gnws_d2.engine import (
    COCOEvaluator,
    IterationSeed,
    ResumableLoader,
    StopOnSignal,
    checked_batches,
    create_ddp_model,
    launch,
    locked_output,
    map_one,
    save_final,
    seek_data,
)
from gnws_d2.engine.accumulation import fused
from gnws_d2.engine.weight_average import WeightAverage
from gnws_d2.files import restored
from gnws_d2.projects.detection.defaults import (
    FirstIterations,
    default_setup,
    evaluation_folder,
    setup_loggers,
)
from gnws_d2.projects.detection.lazy_config import load_lazy_config, values
from gnws_d2.projects.own_data import data_splits, fit_lazy_config, name_data

# Where Detectron2's models have the most detections of an image that they return.
LIMITS = ("test_topk_per_image", "max_detections_per_image")


def build(cfg: Any) -> nn.Module:
    """The model of ``cfg`` on its device, wrapped for data parallelism."""
    model = instantiate(cfg.model).to(cfg.train.device)
    logging.getLogger("gnws_d2").info(
        "Weight Standardization by part:\n%s", StandardizationReport.of(model)
    )
    return create_ddp_model(model, **cfg.train.get("ddp", {}))


def test(cfg: Any, model: nn.Module) -> dict[str, Any]:
    loader, node = instantiate(cfg.dataloader.test), cfg.dataloader.evaluator
    if "_target_" in node and _target(node) in (evaluation.COCOEvaluator, COCOEvaluator):
        limits = (getattr(m, name, None) for m in model.modules() for name in LIMITS)
        limit = next((limit for limit in limits if isinstance(limit, int)), -1)
        node = {**node, "_target_": COCOEvaluator, "detections_per_image": limit}
    results = inference_on_dataset(model, loader, instantiate(node))
    print_csv_format(results)
    return results


def _target(node: Any) -> Any:
    return locate(node._target_) if isinstance(node._target_, str) else node._target_


def build_train_loader(node: Any) -> Iterable[list[dict[str, Any]]]:
    """The loader of ``cfg.dataloader.train``; one that resumes exactly where it describes
    Detectron2's own."""
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    known = {"dataset", "mapper", "sampler", "total_batch_size"}
    known |= {"aspect_ratio_grouping", "num_workers"}
    if _target(node) is not build_detection_train_loader or arguments.keys() - known:
        return instantiate(node)
    sampler = arguments.pop("sampler", None)
    built = {name: instantiate(value) for name, value in arguments.items()}
    build_sampler = functools.partial(instantiate, sampler) if sampler else None
    return ResumableLoader(**built, build_sampler=build_sampler)


def train(cfg: Any, resume: bool, undo: ExitStack | None = None) -> None:
    """Train, and forget ``undo`` when it begins."""
    written, model = values(cfg), build(cfg)
    cfg.optimizer.params.model = model
    kind = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    loader = build_train_loader(cfg.dataloader.train)
    map_one(loader)
    seed = IterationSeed(cfg.train.get("seed", -1))
    trainer = kind(model, loader, fused(instantiate(cfg.optimizer)))
    checkpointer = Checkpointer(model, cfg.train.output_dir, values=written, trainer=trainer)
    train_hooks = [
        seed,
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.EvalHook(cfg.train.eval_period, lambda: test(cfg, model)),
    ]
    if comm.is_main_process():
        train_hooks.insert(3, hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        train_hooks.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
        train_hooks.append(FirstIterations())
    if decay := cfg.train.get("ema_decay"):
        train_hooks.insert(1, WeightAverage(checkpointer.model, decay))
    if undo is not None:
        train_hooks.append(hooks.CallbackHook(before_train=lambda _: undo.pop_all()))
    trainer.register_hooks([*train_hooks, StopOnSignal(checkpointer)])
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if checkpointer.resumed_from else 0
    seek_data(loader, seed.seed, start)
    with locked_output(cfg.train.output_dir), checked_batches(model, loader):
        save_final(checkpointer, start, cfg.train.max_iter)
        trainer.train(start, cfg.train.max_iter)


def run(args: argparse.Namespace) -> None:
    """What each process does."""
    args.config_file = resolve_config_file(args.config_file)
    cfg = load_lazy_config(args.config_file, args.opts)
    name_data(cfg, data_splits(args), args.eval_only)
    run_folder = cfg.train.output_dir
    if args.eval_only:
        cfg.train.output_dir = evaluation_folder(run_folder)
        evaluator = cfg.dataloader.evaluator
        if "output_dir" in evaluator and evaluator.output_dir == run_folder:
            evaluator.output_dir = cfg.train.output_dir
    setup_loggers(cfg.train.output_dir)
    fit_lazy_config(cfg, args.skip_bad_annotations)
    if not args.eval_only:
        folder = cfg.train.output_dir
        # A run that is refused before it trains leaves the config of the one before it.
        with locked_output(folder), restored(Path(folder, "config.yaml")) as undo:
            default_setup(cfg, args)
            train(cfg, args.resume, undo)
    else:
        default_setup(cfg, args)
        model = build(cfg)
        checkpointer = Checkpointer(model, run_folder, for_inference=True)
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
        test(cfg, model)


def device_of(args: argparse.Namespace) -> str:
    return load_lazy_config(args.config_file, args.opts).train.device


def main(args: argparse.Namespace) -> None:
    processes = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    launch(run, *processes, args=(args,), device=lambda: device_of(args))


if __name__ == "__main__":
    main(parse("train"))
