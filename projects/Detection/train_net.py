#!/usr/bin/env python3
"""Train or evaluate a detector described by a config, on GPUs or on the CPU.

    train_net.py --config-file COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml --num-gpus 8
    train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    torchrun --nproc_per_node 8 train_net.py --config-file ...

The config is a path or the name of a packaged one. The schedule is scaled from the number of
processes that it was published for to the actual number.
"""

from __future__ import annotations

import argparse
import logging

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

import gnws_d2
from gnws_d2 import engine
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.config import portable_config
from gnws_d2.config_files import resolve_config_file
from gnws_d2.engine import launch, scale_schedule
from gnws_d2.errors import add_debug_flag
from gnws_d2.projects.acceleration import accelerate, add_acceleration_config


class Trainer(engine.Trainer):
    """Runs the model as the keys of projects/Acceleration say."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return accelerate(super().build_model(cfg), cfg)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, scale its schedule to the number of processes, and set up Detectron2."""
    args.config_file = resolve_config_file(args.config_file)
    cfg = gnws_d2.load_config(args.config_file, args.opts, [add_acceleration_config])
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="gnws_d2")
    if not args.eval_only:
        cfg = scale_schedule(cfg, comm.get_world_size())
    cfg.freeze()
    default_setup(portable_config(cfg), args)
    return cfg


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, cfg=cfg, for_inference=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT:
        logging.getLogger("gnws_d2").warning(
            "MODEL.WEIGHTS is empty, and MODEL.BACKBONE.FREEZE_AT %d keeps the first stages at "
            "their random values. Name the weights of a backbone, or set FREEZE_AT to 0.",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model))]
        )
    trainer.train()


if __name__ == "__main__":
    args = add_debug_flag(default_argument_parser(__doc__)).parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
