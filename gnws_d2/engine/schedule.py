"""The published schedule on another number of GPUs."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from tabulate import tabulate

from ..config import ConfigError

logger = logging.getLogger(__name__)

_SCALED = (
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.STEPS",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)


def scale_schedule(cfg: CfgNode, world_size: int) -> CfgNode:
    """Scale batch, learning rate and schedule from the config's reference number of processes to
    ``world_size``, by Detectron2's own rule, and log the old values beside the new ones.

    Returns:
        A new config; ``cfg`` itself where nothing is to be scaled.

    Raises:
        ConfigError: the batch of the config does not divide among its reference processes.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
        return cfg
    if cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, but the config describes "
            f"training on SOLVER.REFERENCE_WORLD_SIZE = {reference} processes and is scaled to the "
            f"{world_size} there are. Add SOLVER.REFERENCE_WORLD_SIZE 0 to use batch, learning "
            "rate and schedule exactly as given, or leave SOLVER.IMS_PER_BATCH to the scaling."
        )
    scaled = DefaultTrainer.auto_scale_workers(cfg, world_size)
    rows = [(key, _get(cfg, key), _get(scaled, key)) for key in _SCALED]
    logger.info(
        "Schedule scaled from %d processes to %d:\n%s",
        reference,
        world_size,
        tabulate(rows, ["key", "config", "this run"], tablefmt="pipe"),
    )
    return scaled


def _get(cfg: CfgNode, key: str) -> object:
    section, name = key.split(".")
    return cfg[section][name]
