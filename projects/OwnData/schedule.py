"""The schedule of a training on one's own data, with the reason for each value."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from tabulate import tabulate

from gnws_d2.config import (
    CONFIG_ROOT,
    EPOCH_KEYS,
    get_key,
    leaves,
    load_config,
    resolve_config_file,
    set_key,
)
from gnws_d2.engine.schedule import SCALED, scaled_from
from gnws_d2.errors import ConfigError

from .source import is_source

logger = logging.getLogger(__name__)

IMAGES_PER_PROCESS = 2
# How many images a run on one's own data trains on, and the least and most epochs that this may be.
IMAGES_SEEN, MIN_EPOCHS, MAX_EPOCHS = 24_000, 12, 60
# All three, for weights that know less.
FACTORS = {"a trained detector": 1, "an ImageNet backbone": 2, "random weights": 3}
PARTS = 10  # evaluations and checkpoints in a run
WARMUP = 0.1  # of the run, at most
AS_WRITTEN, EXPLICIT = "as in the config", "set explicitly"


def schedule_for(
    cfg: CfgNode,
    images: int,
    world_size: int,
    explicit: Collection[str] = (),
    packaged: CfgNode | None = None,
) -> CfgNode:
    """The schedule of a run, in iterations, with a table in the log of what it is and why.

    Batch, learning rate and length are scaled to the number of processes, as
    :func:`~gnws_d2.engine.scale_schedule` does. For a dataset of one's own, whose name in
    DATASETS.TRAIN is a COCO file, they follow from its size. Explicit keys keep their values.

    Args:
        images: the number that is trained on, after the filter.
        explicit: see :func:`~gnws_d2.config.explicit_keys`.
        packaged: see :func:`~gnws_d2.config.packaged_config`: its learning rate is meant for its
            batch, and its steps for its length. By default those of ``cfg``.

    Returns:
        A new config without lengths in epochs, which training does not scale again; ``cfg`` itself
        where nothing changes.

    Raises:
        ConfigError: the same length is explicit in epochs and in iterations.
    """
    _check_lengths(cfg, explicit)
    packaged = packaged or cfg
    solver = cfg.SOLVER
    is_own = any(map(is_source, cfg.DATASETS.TRAIN))
    batch, why = _batch(cfg, world_size, explicit, is_own)
    meant = solver.IMS_PER_BATCH if why == AS_WRITTEN else packaged.SOLVER.IMS_PER_BATCH
    scaled = scaled_from(cfg, meant, batch)
    run = _Schedule(scaled, cfg, explicit)
    run.note("SOLVER.IMS_PER_BATCH", why)
    run.note("SOLVER.BASE_LR", f"{solver.BASE_LR:g} for a batch of {meant}, linear in the batch")

    epoch = images / batch  # iterations
    epochs, why = solver.EPOCHS, f"of {images} images"
    if is_own and not epochs:
        epochs, why = _default_epochs(images, cfg.MODEL.WEIGHTS)
    if "SOLVER.MAX_ITER" in explicit:
        epochs = 0.0
    if epochs:
        run.put("SOLVER.MAX_ITER", math.ceil(epochs * epoch - 1e-6), f"{epochs:g} epochs {why}")
    length = run["SOLVER.MAX_ITER"]
    if length != scaled.SOLVER.MAX_ITER or "SOLVER.MAX_ITER" in explicit:
        of = packaged if "SOLVER.MAX_ITER" in explicit else cfg
        fractions = [step / of.SOLVER.MAX_ITER for step in of.SOLVER.STEPS]
        if fractions:
            where = ", ".join(f"{fraction:.0%}" for fraction in fractions)
            steps = tuple(round(fraction * length) for fraction in fractions)
            run.put("SOLVER.STEPS", steps, f"at {where} of the run, as in the config")
        if scaled.SOLVER.WARMUP_ITERS > WARMUP * length:
            run.put("SOLVER.WARMUP_ITERS", int(WARMUP * length), "at most a tenth of the run")

    part = max(1, round(length / epoch / PARTS))  # epochs
    for key, wanted in (
        ("SOLVER.CHECKPOINT_PERIOD", solver.CHECKPOINT_EPOCHS),
        ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_EPOCHS),
    ):
        if wanted:
            run.put(
                key, max(1, round(wanted * epoch)), f"every {wanted:g} epochs of {images} images"
            )
        elif is_own:
            times = "once an epoch" if part == 1 else f"every {part} epochs, {PARTS} times a run"
            run.put(key, max(1, round(part * epoch)), times)
    return run.finished()


def explicit_keys(file: str, opts: Sequence[str] = ()) -> set[str]:
    """The keys that the user set: those of ``opts``, and of the files among ``file`` and its bases
    that are not packaged.

    Where ``opts`` count in epochs, iterations of a file give way: a saved config can be run again
    with SOLVER.EPOCHS.

    Args:
        file, opts: those of :func:`~gnws_d2.load_config`.
    """
    keys = {key for content in _own_files(file)[0] for key, _ in leaves(CfgNode(content))}
    given = set(opts[::2])
    for epochs, iterations in EPOCH_KEYS.items():
        if epochs in given:
            keys -= iterations
    return keys | given


def packaged_config(file: str) -> CfgNode:
    """The packaged config that ``file`` is or builds on, without anything that a user set;
    Detectron2's defaults where there is none."""
    return load_config(_own_files(file)[1])


def _own_files(file: str) -> tuple[list[dict[str, Any]], str]:
    """The contents of a config file and of its bases, each alone, without packaged ones, and the
    path of the packaged one that it is or builds on; "" where there is none."""
    if not file:
        return [], ""
    path = Path(resolve_config_file(file))
    if path.resolve().is_relative_to(CONFIG_ROOT.resolve()):
        return [], str(path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    bases = content.pop("_BASE_", [])
    own, packaged = [content], ""
    for base in bases if isinstance(bases, list) else [bases]:
        beside = path.parent / Path(base).expanduser()
        found = _own_files(str(beside) if beside.is_file() else base)
        own, packaged = own + found[0], found[1] or packaged
    return own, packaged


def _check_lengths(cfg: CfgNode, explicit: Collection[str]) -> None:
    for epochs, iterations in EPOCH_KEYS.items():
        for key in sorted(iterations & set(explicit) - {"SOLVER.STEPS"}):
            if epochs in explicit and get_key(cfg, epochs):
                raise ConfigError(
                    f"{epochs} is {get_key(cfg, epochs):g} and {key} is {get_key(cfg, key)}, which "
                    "set the same length twice. Remove one of them."
                )


def _batch(
    cfg: CfgNode, world_size: int, explicit: Collection[str], is_own: bool
) -> tuple[int, str]:
    """The number of images of an iteration, and why."""
    solver = cfg.SOLVER
    batch, reference = solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE
    if solver.SCALE_TO_BATCH:
        return solver.SCALE_TO_BATCH, "SOLVER.SCALE_TO_BATCH"
    if "SOLVER.REFERENCE_WORLD_SIZE" in explicit and not reference:
        return batch, AS_WRITTEN
    if "SOLVER.IMS_PER_BATCH" in explicit:
        return batch, EXPLICIT
    if solver.ACCUMULATION_STEPS > 1:
        return batch, f"in {solver.ACCUMULATION_STEPS} micro-batches"
    if is_own:
        return IMAGES_PER_PROCESS * world_size, _each(IMAGES_PER_PROCESS, world_size)
    if reference:
        return batch * world_size // reference, _each(batch // reference, world_size)
    return batch, AS_WRITTEN


def _each(images: int, world_size: int) -> str:
    return f"{images} for each of {world_size} processes" if world_size > 1 else "for one process"


def _default_epochs(images: int, weights: str) -> tuple[float, str]:
    kind = "a trained detector" if weights else "random weights"
    if "imagenet" in weights.lower():
        kind = "an ImageNet backbone"
    factor = FACTORS[kind]
    seen, least, most = factor * IMAGES_SEEN, factor * MIN_EPOCHS, factor * MAX_EPOCHS
    epochs = min(max(round(seen / images), least), most)
    return epochs, f"of {images} images, from {kind}: {seen:,} images, in {least} to {most} epochs"


class _Schedule:
    """The keys of a schedule, of which explicit ones stay as in ``cfg``, and why each is what it
    is."""

    def __init__(self, scaled: CfgNode, cfg: CfgNode, explicit: Collection[str]) -> None:
        self._cfg = cfg
        self._explicit = set(explicit)
        self._new = scaled.clone()
        self._new.defrost()
        self._why: dict[str, str] = {}
        for key in SCALED:
            if key in explicit:
                set_key(self._new, key, get_key(cfg, key))
        for key, value in (("SOLVER.REFERENCE_WORLD_SIZE", 0), *((k, 0.0) for k in EPOCH_KEYS)):
            set_key(self._new, key, value)

    def __getitem__(self, key: str) -> Any:
        return get_key(self._new, key)

    def note(self, key: str, why: str) -> None:
        self._why[key] = why

    def put(self, key: str, value: object, why: str) -> None:
        if key not in self._explicit:
            set_key(self._new, key, value)
            self.note(key, why)

    def finished(self) -> CfgNode:
        """The new config, logged; the old one where they are the same."""
        if self._new == self._cfg:
            return self._cfg
        rows = []
        for key in SCALED:
            if key == "SOLVER.REFERENCE_WORLD_SIZE":
                continue
            scaled = "scaled with the batch" if self[key] != get_key(self._cfg, key) else AS_WRITTEN
            why = EXPLICIT if key in self._explicit else self._why.get(key, scaled)
            rows.append((key, self[key], why))
        table = tabulate(rows, ["key", "value", "reason"], tablefmt="pipe", disable_numparse=True)
        logger.info("The schedule of this run:\n%s", table)
        if self._cfg.is_frozen():
            self._new.freeze()
        return self._new
