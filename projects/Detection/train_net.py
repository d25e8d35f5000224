#!/usr/bin/env python3
"""Train or evaluate a detector, on GPUs or on the CPU.

    train_net.py --data FOLDER
    train_net.py --config-file COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml --num-gpus 8
    train_net.py --eval-only --weights output/model_best.pth --test more.json
    torchrun --nproc_per_node 8 train_net.py --config-file ...

The first trains on your own images, annotated as COCO JSON: docs/own-data.md. A config is a path or
the name of a packaged one; KEY VALUE pairs at the end override it. Its schedule is scaled from the
number of processes that it was published for to the actual number.
"""

from __future__ import annotations

import argparse
import functools
import logging

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn

from gnws_d2 import engine
from gnws_d2.checkpoint import Checkpointer, check_weights
from gnws_d2.config import explicit_keys, packaged_config, portable_config
from gnws_d2.data import fit_to_data
from gnws_d2.data.coco_file import kept_files
from gnws_d2.data.filter import load_train_dataset
from gnws_d2.data.source import is_source
from gnws_d2.engine import default_setup, launch, lock_output, scale_schedule, schedule_for
from gnws_d2.engine.console import setup_loggers
from gnws_d2.errors import add_debug_flag
from gnws_d2.projects.acceleration import accelerate
from gnws_d2.projects.detection.data_arguments import add_data_arguments
from gnws_d2.projects.detection.own_data import (
    add_training_arguments,
    evaluate,
    finish,
    read_config,
    start_from_detector,
)

logger = logging.getLogger("gnws_d2")


class Trainer(engine.Trainer):
    """Runs the model as the keys of projects/Acceleration say."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return accelerate(super().build_model(cfg), cfg)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, fit it to the data and its schedule to both, and set up Detectron2."""
    cfg, file, opts = read_config(args)
    if not args.eval_only:
        lock_output(cfg.OUTPUT_DIR)
    setup_loggers(cfg.OUTPUT_DIR)
    explicit = explicit_keys(file, opts)
    if not args.eval_only:
        if not args.config_file:
            logger.info("No config was named. For this data and device: %s", file)
        start_from_detector(cfg, file, explicit)
    args.config_file = file
    check = functools.partial(check_weights, for_inference=args.eval_only)
    cfg = fit_to_data(cfg, check=None if args.resume else check)
    if not args.eval_only:
        world_size = comm.get_world_size()
        if any(map(is_source, cfg.DATASETS.TRAIN)):
            images = len(load_train_dataset(cfg))
            cfg = schedule_for(cfg, images, world_size, explicit, packaged_config(file))
        else:
            cfg = scale_schedule(cfg, world_size)
    cfg.freeze()
    default_setup(portable_config(cfg), args)
    return cfg


def main(args: argparse.Namespace) -> None:
    with kept_files():  # each annotation file is read once
        cfg = setup(args)
        trainer = None if args.eval_only else Trainer(cfg)
    if trainer is None:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, cfg=cfg, for_inference=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = evaluate(model, cfg, cfg.DATASETS.TEST, cfg.MODEL.WEIGHTS)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT:
        logger.warning(
            "MODEL.WEIGHTS is empty, and MODEL.BACKBONE.FREEZE_AT %d keeps the first stages at "
            "their random values. Name the weights of a backbone, or set FREEZE_AT to 0.",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model))]
        )
    trainer.train()
    finish(trainer, cfg)


def argument_parser() -> argparse.ArgumentParser:
    parser = add_debug_flag(default_argument_parser(__doc__))
    return add_data_arguments(add_training_arguments(parser))


def invoke_main() -> None:
    args = argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    invoke_main()
