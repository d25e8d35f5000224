"""The published schedule on another number of GPUs, with another batch, or in epochs."""

import logging
import math
from collections.abc import Collection

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from tabulate import tabulate

from ..checkpoint.resume import from_main_process
from ..config import EPOCH_KEYS, get_key, leaves, set_key
from ..data import load_train_dataset
from ..errors import ConfigError

logger = logging.getLogger(__name__)

LENGTHS = ("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")


def scale_schedule(cfg: CfgNode, world_size: int) -> CfgNode:
    """:func:`scaled`, with a log of the old values beside the new ones."""
    new = scaled(cfg, world_size)
    if new is not cfg:
        _log_changes(cfg, new)
    return new


def scaled(cfg: CfgNode, world_size: int) -> CfgNode:
    """Scale batch, learning rate and schedule by Detectron2's own rule: to SOLVER.SCALE_TO_BATCH
    where that is set, and else from the config's reference number of processes to ``world_size``,
    unless SOLVER.ACCUMULATION_STEPS makes the batch of the config fit.

    Returns:
        A new config, which a second call returns as it is; ``cfg`` itself where nothing changes.

    Raises:
        ConfigError: the batch of the config does not divide among its reference processes.
    """
    old, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if cfg.SOLVER.SCALE_TO_BATCH or cfg.SOLVER.ACCUMULATION_STEPS > 1:
        batch = cfg.SOLVER.SCALE_TO_BATCH or old
        return cfg if (batch, reference) == (old, 0) else scaled_from(cfg, old, batch)
    if reference in (0, world_size):
        return cfg
    if old % reference:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {old}, but the config describes training on "
            f"SOLVER.REFERENCE_WORLD_SIZE = {reference} processes and is scaled to the "
            f"{world_size} in use. Add SOLVER.REFERENCE_WORLD_SIZE 0 to use batch, learning "
            "rate and schedule as written, or do not set SOLVER.IMS_PER_BATCH."
        )
    return _scaled(cfg, world_size)


def scaled_from(cfg: CfgNode, old: int, batch: int) -> CfgNode:
    """A copy of ``cfg``, a schedule for a batch of ``old``, scaled to ``batch`` and not to be
    scaled again."""
    images = cfg.clone()
    images.defrost()
    # The rule scales by processes: here each image counts as one.
    images.SOLVER.IMS_PER_BATCH = images.SOLVER.REFERENCE_WORLD_SIZE = old
    new = _scaled(images, batch)
    # Turned off, or Detectron2 would scale again, from images to processes.
    new.SOLVER.REFERENCE_WORLD_SIZE = 0
    new.SOLVER.SCALE_TO_BATCH = 0
    if cfg.is_frozen():
        new.freeze()
    return new


def _scaled(cfg: CfgNode, world_size: int) -> CfgNode:
    """Detectron2's rule, which rounds a short length down to none."""
    new = DefaultTrainer.auto_scale_workers(cfg, world_size)
    new.defrost()
    for key in LENGTHS:
        set_key(new, key, max(get_key(new, key), min(1, get_key(cfg, key))))
    if cfg.is_frozen():
        new.freeze()
    return new


def in_iterations(cfg: CfgNode, explicit: Collection[str] = ()) -> CfgNode:
    """``cfg`` with lengths in epochs of the images that are trained on turned into iterations;
    SOLVER.STEPS keep their fractions of SOLVER.MAX_ITER, or if they are among the ``explicit`` keys
    their values. ``cfg`` itself where there are none."""
    if not any(get_key(cfg, key) for key in EPOCH_KEYS):
        return cfg
    if cfg.SOLVER.MINUTES:
        raise ConfigError(
            "SOLVER.MINUTES is a length of training on files of one's own (--data, --train). Set "
            "SOLVER.EPOCHS or SOLVER.MAX_ITER."
        )
    new = cfg.clone()
    new.defrost()
    images = from_main_process(lambda: len(load_train_dataset(cfg)))  # type: ignore[arg-type]
    epoch = images / cfg.SOLVER.IMS_PER_BATCH  # iterations
    if cfg.SOLVER.EPOCHS:
        new.SOLVER.MAX_ITER = math.ceil(cfg.SOLVER.EPOCHS * epoch - 1e-6)
    if cfg.SOLVER.EPOCHS and "SOLVER.STEPS" not in explicit:
        fractions = [step / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS]
        new.SOLVER.STEPS = tuple(round(f * new.SOLVER.MAX_ITER) for f in fractions)
    if cfg.SOLVER.CHECKPOINT_EPOCHS:
        new.SOLVER.CHECKPOINT_PERIOD = max(1, round(cfg.SOLVER.CHECKPOINT_EPOCHS * epoch))
    if cfg.TEST.EVAL_EPOCHS:
        new.TEST.EVAL_PERIOD = max(1, round(cfg.TEST.EVAL_EPOCHS * epoch))
    for key in EPOCH_KEYS:
        set_key(new, key, 0.0)
    logger.info("An epoch has %d images, %g iterations.", images, epoch)
    _log_changes(cfg, new)
    if cfg.is_frozen():
        new.freeze()
    return new


def _log_changes(cfg: CfgNode, new: CfgNode) -> None:
    rows = [(key, old, get_key(new, key)) for key, old in leaves(cfg) if get_key(new, key) != old]
    table = tabulate(rows, ["key", "config", "this run"], tablefmt="pipe")
    logger.info("The schedule of this run:\n%s", table)
