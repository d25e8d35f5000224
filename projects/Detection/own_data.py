"""What train_net.py decides for images of one's own: the config, the weights to start from, and the
evaluation of the best checkpoint at the end."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

import gnws_d2
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.checkpoint.files import read_checkpoint
from gnws_d2.checkpoint.resuming import from_main_process
from gnws_d2.config import CONFIG_ROOT, resolve_config_file
from gnws_d2.data.coco_file import read_coco
from gnws_d2.data.source import Source, is_source
from gnws_d2.engine import Trainer
from gnws_d2.errors import ConfigError
from gnws_d2.model_zoo.published import published
from gnws_d2.predictor import config_of
from gnws_d2.projects.acceleration import add_acceleration_config
from gnws_d2.projects.detection.data_arguments import data_opts, data_splits
from gnws_d2.report.run import try_report

logger = logging.getLogger("gnws_d2")

ADD_CONFIGS = [add_acceleration_config]
# Boxes, boxes and masks: those to fine-tune on a GPU, and those that a CPU trains in minutes.
ON_GPU = (
    "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml",
)
ON_CPU = ("Small/faster_rcnn_R_18_FPN_gn_ws.yaml", "Small/mask_rcnn_R_18_FPN_gn_ws.yaml")


def add_training_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--weights`` and ``--epochs``, short for two keys."""
    parser.add_argument("--weights", metavar="FILE", help="short for MODEL.WEIGHTS FILE")
    parser.add_argument("--epochs", metavar="N", help="short for SOLVER.EPOCHS N")
    return parser


def read_config(args: argparse.Namespace) -> tuple[CfgNode, str, list[str]]:
    """The config that the arguments describe, its file, and its overrides.

    Without ``--config-file`` it is that of the weights if a checkpoint is evaluated, and else one
    for the data and the device.
    """
    splits = data_splits(args)
    opts = [*data_opts(args, splits, eval_only=args.eval_only), *args.opts]
    for key, value in (("MODEL.WEIGHTS", args.weights), ("SOLVER.EPOCHS", args.epochs)):
        if value is not None:
            opts = [key, value, *opts]
    file = resolve_config_file(args.config_file)
    if not file and args.eval_only:
        return config_of(args.weights or "", opts, ADD_CONFIGS), "", opts
    if not file and not splits["train"]:
        raise ConfigError(
            "neither a config nor data is named. Add --data FOLDER to train on your own images, or "
            "--config-file; `gnws zoo list` shows the packaged configs."
        )
    file = file or resolve_config_file(choose_config(splits["train"]))
    return gnws_d2.load_config(file, opts, ADD_CONFIGS), file, opts


def choose_config(names: Sequence[str]) -> str:
    """The packaged config for the training data ``names`` and the device."""
    has_masks = any(read_coco(s.file).has_masks for s in map(Source.parse, names) if s)
    return (ON_GPU if torch.cuda.is_available() else ON_CPU)[has_masks]


def start_from_detector(cfg: CfgNode, file: str, explicit: Collection[str]) -> None:
    """Let training on files of one's own start from the published detector of its config, where
    there is one and no other weights were set explicitly."""
    if "MODEL.WEIGHTS" in explicit or not any(map(is_source, cfg.DATASETS.TRAIN)):
        return
    root, path = CONFIG_ROOT.resolve(), Path(file).resolve()
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
    for entry in published():
        if entry.config == name and not entry.is_backbone:
            logger.info("Training starts from %s. MODEL.WEIGHTS chooses other weights.", entry.uri)
            cfg.MODEL.WEIGHTS = entry.uri


def finish(trainer: Trainer, cfg: CfgNode) -> None:
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
        try_report(cfg, weights)
    return results
