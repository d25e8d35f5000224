"""The schedule of a training on custom data, with the reason for each value."""

import logging
import math
import time
from collections.abc import Collection, Sequence

from detectron2.config import CfgNode
from tabulate import tabulate

from gnws_d2.config import EPOCH_KEYS, get_key, load_config, own_settings, set_key
from gnws_d2.engine.schedule import scaled, scaled_from
from gnws_d2.errors import ConfigError

from .choose import BACKBONE, DETECTOR, RANDOM, start_of
from .minutes import within_minutes

logger = logging.getLogger(__name__)

KEYS = (
    *("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.WARMUP_ITERS", "SOLVER.STEPS"),
    *("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
    *("TEST.LOSS_IMAGES", "SOLVER.CHECKPOINTS_KEPT"),
)
IMAGES_PER_PROCESS = 2
# Target images seen on a custom dataset, and the allowed range of epochs.
IMAGES_SEEN, MIN_EPOCHS, MAX_EPOCHS = 24_000, 12, 60
# The factor of all three, by what training starts from, and on a CPU.
FACTORS = {DETECTOR: 1, BACKBONE: 2, RANDOM: 3}
ON_CPU = 0.25
PARTS = 10  # evaluations and checkpoints in a run
LOSS_IMAGES = 100
KEPT = 2  # checkpoints: should the newest be damaged, there is another
WARMUP = 0.1  # of the run, at most
AS_WRITTEN, EXPLICIT = "as in the config", "set explicitly"


def schedule_for(
    cfg: CfgNode,
    images: int,
    world_size: int,
    explicit: Collection[str],
    packaged: CfgNode,
    began: float | None = None,
) -> CfgNode:
    """The schedule for a custom dataset of this size, in iterations. Logs a table of the values and
    their reasons.

    Args:
        images: the number of images that are trained on, after filtering.
        world_size: the number of processes.
        explicit: the keys that keep their values, see :func:`explicit_keys`.
        packaged: the config whose learning rate suits its batch and whose steps suit its length,
            see :func:`packaged_config`.
        began: when the command did, by ``time.monotonic``; by default now.

    Returns:
        A new config without lengths in epochs, which training does not scale again; ``cfg`` itself
        where nothing changes.

    Raises:
        ConfigError: the same length is explicit in epochs and in iterations.
    """
    check_lengths(cfg, explicit)
    solver = cfg.SOLVER
    # What is set explicitly stays, unless Detectron2's scaling is asked for, which scales it, too.
    asked = "SOLVER.SCALE_TO_BATCH" if solver.SCALE_TO_BATCH else "SOLVER.REFERENCE_WORLD_SIZE"
    is_asked = bool(solver.SCALE_TO_BATCH) or asked in explicit
    written = scaled(cfg, world_size) if is_asked else cfg
    batch, reason = _batch(written, world_size, explicit, asked if is_asked else "")
    is_off = "SOLVER.REFERENCE_WORLD_SIZE" in explicit and not solver.REFERENCE_WORLD_SIZE
    meant = (cfg if is_off else packaged).SOLVER.IMS_PER_BATCH
    new = scaled_from(cfg, meant, batch)
    new.defrost()
    unchanged = AS_WRITTEN if batch == meant else "scaled with the batch"
    reasons = dict.fromkeys(KEYS, unchanged)
    for key in set(KEYS).intersection(explicit):
        old, value = get_key(cfg, key), get_key(written, key)
        set_key(new, key, value)
        reasons[key] = EXPLICIT if value == old else f"{old} is set, scaled by {asked}"
    for key in EPOCH_KEYS:
        set_key(new, key, 0.0)

    def put(key: str, value: object, reason: str) -> None:
        if key not in explicit:
            set_key(new, key, value)
            reasons[key] = reason

    put("SOLVER.IMS_PER_BATCH", batch, reason)
    reason = f"{solver.BASE_LR:g} for a batch of {meant}, linear in the batch"
    put("SOLVER.BASE_LR", new.SOLVER.BASE_LR, reason)

    put("TEST.LOSS_IMAGES", LOSS_IMAGES, "validation images of which the loss is logged, at most")
    epoch = images / batch  # iterations
    epochs, reason = solver.EPOCHS, f"{solver.EPOCHS:g} epochs of {images} images"
    if not epochs:
        epochs, reason = _default_epochs(images, cfg)
    length, parts = math.ceil(epochs * epoch - 1e-6), PARTS
    if solver.MINUTES:
        new.SOLVER.MINUTES = solver.MINUTES
        length, parts, reason = within_minutes(new, began or time.monotonic())
        new.SOLVER.MINUTES = 0.0
    put("SOLVER.MAX_ITER", length, reason)
    length = new.SOLVER.MAX_ITER
    of = packaged if "SOLVER.MAX_ITER" in explicit else cfg
    if not solver.STEPS and "SOLVER.STEPS" not in explicit:
        reasons["SOLVER.STEPS"] = AS_WRITTEN
    if fractions := [step / of.SOLVER.MAX_ITER for step in of.SOLVER.STEPS]:
        where = ", ".join(f"{fraction:.0%}" for fraction in fractions)
        steps = tuple(round(fraction * length) for fraction in fractions)
        put("SOLVER.STEPS", steps, f"at {where} of the run, as in the config")
    if new.SOLVER.WARMUP_ITERS > WARMUP * length:
        put("SOLVER.WARMUP_ITERS", int(WARMUP * length), "at most a tenth of the run")

    part = max(1, round(length / epoch / parts))  # epochs
    default = "once an epoch" if part == 1 else f"every {part} epochs, {parts} times a run"
    for key, wanted in (
        ("SOLVER.CHECKPOINT_PERIOD", solver.CHECKPOINT_EPOCHS),
        ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_EPOCHS),
    ):
        reason = f"every {wanted:g} epochs of {images} images" if wanted else default
        put(key, max(1, round((wanted or part) * epoch)), reason)
    put("SOLVER.CHECKPOINTS_KEPT", KEPT, "the newest, beside model_best.pth; 0 keeps all")

    if new == cfg:
        return cfg
    rows = [(key, get_key(new, key), reasons[key]) for key in KEYS]
    table = tabulate(rows, ["key", "value", "reason"], tablefmt="pipe", disable_numparse=True)
    logger.info("The schedule of this run:\n%s", table)
    if cfg.is_frozen():
        new.freeze()
    return new


def explicit_keys(file: str, opts: Sequence[str] = ()) -> set[str]:
    """The keys that the user set: in ``opts``, and in the files among ``file`` and its bases that
    are not packaged.

    Lengths in epochs in ``opts`` take precedence over iterations in a file, so that a saved config
    can be run again with SOLVER.EPOCHS.

    Args:
        file, opts: those of :func:`~gnws_d2.load_config`.
    """
    keys, given = own_settings(file)[0], set(opts[::2])
    for epochs, iterations in EPOCH_KEYS.items():
        if epochs in given:
            keys -= iterations
    return keys | given


def packaged_config(file: str) -> CfgNode:
    """The packaged config that ``file`` is or builds on, without what a user set; Detectron2's
    defaults where there is none."""
    return load_config(own_settings(file)[1])


def as_in(former: CfgNode, cfg: CfgNode) -> set[str]:
    """Give ``cfg``, whose length is in minutes, the schedule of a run that it resumes, and return
    the keys that are then set explicitly."""
    for key in KEYS:
        set_key(cfg, key, get_key(former, key))
    cfg.SOLVER.MINUTES = 0.0
    return set(KEYS)


def check_lengths(cfg: CfgNode, explicit: Collection[str]) -> None:
    """Raise ConfigError where the same length is explicit in epochs and in iterations."""
    if cfg.SOLVER.MINUTES and cfg.SOLVER.EPOCHS:
        raise ConfigError(
            f"SOLVER.MINUTES is {cfg.SOLVER.MINUTES:g} and SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS:g}, "
            "which set the same length twice. Remove one of them."
        )
    for epochs, iterations in EPOCH_KEYS.items():
        for key in sorted(iterations & set(explicit) - {"SOLVER.STEPS"}):
            if epochs in explicit and get_key(cfg, epochs):
                raise ConfigError(
                    f"{epochs} is {get_key(cfg, epochs):g} and {key} is {get_key(cfg, key)}, which "
                    "set the same length twice. Remove one of them."
                )


def _batch(cfg: CfgNode, world_size: int, explicit: Collection[str], asked: str) -> tuple[int, str]:
    """The number of images of an iteration, and why."""
    solver = cfg.SOLVER
    if asked:
        return solver.IMS_PER_BATCH, asked
    if "SOLVER.IMS_PER_BATCH" in explicit:
        return solver.IMS_PER_BATCH, EXPLICIT
    if solver.ACCUMULATION_STEPS > 1:
        return solver.IMS_PER_BATCH, f"in {solver.ACCUMULATION_STEPS} micro-batches"
    each = f"each of {world_size} processes" if world_size > 1 else "one process"
    return IMAGES_PER_PROCESS * world_size, f"{IMAGES_PER_PROCESS} for {each}"


def _default_epochs(images: int, cfg: CfgNode) -> tuple[float, str]:
    """The length of a run in epochs, and why."""
    kind, is_cpu = start_of(cfg.MODEL.WEIGHTS), cfg.MODEL.DEVICE == "cpu"
    factor = FACTORS[kind] * (ON_CPU if is_cpu else 1)
    seen, least, most = (round(factor * n) for n in (IMAGES_SEEN, MIN_EPOCHS, MAX_EPOCHS))
    epochs = min(max(round(seen / images), least), most)
    return epochs, (
        f"{epochs:g} epochs of {images} images, from {kind}{' on a CPU' * is_cpu}: {seen:,} "
        f"images, in {least} to {most} epochs"
    )
