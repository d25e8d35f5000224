"""Check whether a run can continue from a checkpoint, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import get_key
from ..errors import CheckpointError, GnwsError
from .provenance import Provenance

logger = logging.getLogger(__name__)

# A resumed run takes these from the checkpoint; other values in the config would be ignored.
KEPT = ("SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "SEED")


def from_main_process(read: Callable[[], Any]) -> Any:
    """Call ``read`` in the main process, and return or raise its result in all processes."""
    found: list[Any] = [None, None]
    cause: Exception | None = None
    if comm.is_main_process():
        try:
            found[0] = read()
        except Exception as error:
            cause = found[1] = error
            if not isinstance(error, GnwsError):  # it may not survive pickling
                found[1] = RuntimeError(f"in the main process: {type(error).__name__}: {error}")
    if comm.get_world_size() > 1:
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise cause or found[1]
    return found[0]


def last_checkpoint(folder: Path, resume: bool) -> Path | None:
    """The file to resume from; None to start from the beginning, with a warning if ``resume`` or
    the folder suggests otherwise.

    Raises:
        CheckpointError: there are checkpoints, but ``last_checkpoint`` does not name one.
    """
    pointer = folder / "last_checkpoint"
    others = sorted(file.name for file in folder.glob("model_*.pth"))
    if not resume:
        if others or pointer.exists():
            logger.warning(
                "%s already has checkpoints (%s), which this run replaces one by one. Add --resume "
                "to continue them, or choose another OUTPUT_DIR.",
                *(folder, ", ".join(others[-3:]) or pointer.name),
            )
        return None
    name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    if name and (folder / name).is_file():
        return folder / name
    if name or others:
        found = f"names {name!r}, which does not exist" if name else "is missing"
        instead = f" Write one of {', '.join(others)} into it" if others else " Restore the file"
        raise CheckpointError(
            f"Cannot resume: {pointer} {found}.{instead}, or start again without --resume."
        )
    logger.warning(
        "Nothing to resume: %s has no checkpoint. MODEL.WEIGHTS is loaded, as without --resume.",
        folder,
    )
    return None


def check_resumable(checkpoint: Mapping[str, Any], file: Path, cfg: CfgNode | None) -> None:
    """Raise CheckpointError if training cannot continue exactly from ``checkpoint``."""
    try:
        state = checkpoint["trainer"]
        optimizer = state.get("_trainer", state)["optimizer"]
        groups, buffers, _ = optimizer["param_groups"], optimizer["state"], state["iteration"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Cannot resume: {file} has no trainer state (optimizer and iteration). Train from "
            f"its weights with MODEL.WEIGHTS {file}, without --resume, in another OUTPUT_DIR."
        ) from error
    if not groups or (not buffers and any(group.get("momentum") for group in groups)):
        raise CheckpointError(
            f"Cannot resume: the optimizer state in {file} is empty. Name an earlier checkpoint in "
            f"{file.parent / 'last_checkpoint'}."
        )
    if cfg is not None:
        _check_config(Provenance.read(checkpoint).config, cfg, file)


def _check_config(stored: str | None, cfg: CfgNode, file: Path) -> None:
    theirs = CfgNode(yaml.safe_load(stored)) if stored else CfgNode()
    former = {key: get_key(theirs, key) for key in (*KEPT, "SOLVER.IMS_PER_BATCH")}
    changed = {key: old for key, old in former.items() if old not in (None, get_key(cfg, key))}
    if cfg.SEED < 0:  # the drawn one is in the checkpoint
        changed.pop("SEED", None)
    batch = changed.pop("SOLVER.IMS_PER_BATCH", None)
    if changed:
        values = ", ".join(f"{key} is {get_key(cfg, key)}, was {changed[key]}" for key in changed)
        processes = " with the same number of processes" if batch else ""
        raise CheckpointError(
            f"Cannot resume {file} with another optimizer or seed, which would be ignored: "
            f"{values}. Resume with the former{processes}, or start another run from MODEL.WEIGHTS."
        )
    if batch:
        logger.warning(
            "SOLVER.IMS_PER_BATCH is %d, but %s was trained with %d: the resumed run reads the "
            "images in another order than an uninterrupted one.",
            *(cfg.SOLVER.IMS_PER_BATCH, file, batch),
        )
