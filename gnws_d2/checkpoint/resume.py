"""Check whether a run can continue from a checkpoint, before anything is loaded."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm

from ..config import all_defaults, leaves
from ..errors import CheckpointError, GnwsError, shorten
from .provenance import KEY, Provenance

logger = logging.getLogger(__name__)

# A resumed run takes these from the checkpoint; other values in the config would be ignored. The
# names in small letters are of LazyConfigs.
KEPT = re.compile(
    r"SOLVER\.(BASE_LR|MOMENTUM|NESTEROV|WEIGHT_DECAY.*|BIAS_LR_FACTOR)|SEED|optimizer\..*|train\.seed"
)
# What changes neither the model nor its training, or only follows from other keys.
FREE = re.compile(
    r"OUTPUT_DIR|VERSION|VIS_PERIOD|CUDNN_BENCHMARK|GLOBAL\..*|TEST\..*|.*_TEST|DATASETS\.TEST"
    r"|MODEL\.(WEIGHTS|DEVICE)|DATALOADER\.NUM_WORKERS|SOLVER\.(REFERENCE_WORLD_SIZE|SCALE_TO_BATCH"
    r"|CHECKPOINT_PERIOD|CHECKPOINT_EPOCHS|CHECKPOINTS_KEPT|EARLY_STOPPING|PROCESS_TIMEOUT)"
    r"|train\.(?!seed|max_iter|amp|ema).*|dataloader\.(test|evaluator|train\.num_workers).*"
)
# What decides which images come when.
DATA = ("solver.ims_per_batch", "datasets.", "dataloader.")
MOST = 8  # keys in a message


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
    if comm.get_world_size() > 1:  # not through the memory of GPUs
        dist.broadcast_object_list(found, group=comm._get_global_gloo_group())
    if found[1] is not None:
        raise cause or found[1]
    return found[0]


def named_checkpoint(folder: Path) -> tuple[str, Path | None]:
    """The name in the ``last_checkpoint`` of a run, "" without one, and the file if it exists."""
    pointer = folder / "last_checkpoint"
    name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    return name, folder / name if name and (folder / name).is_file() else None


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
    name, file = named_checkpoint(folder)
    if file:
        return file
    if name or others:
        found = f"names {name!r}, which does not exist" if name else "is missing"
        whole = [other for other in others if other != "model_best.pth"]  # which has weights alone
        instead = f" Write one of {', '.join(whole)} into it" if whole else " Restore the file"
        raise CheckpointError(
            f"Cannot resume: {pointer} {found}.{instead}, or start again without --resume."
        )
    logger.warning(
        "Nothing to resume: %s has no checkpoint. MODEL.WEIGHTS is loaded, as without --resume.",
        folder,
    )
    return None


def check_resumable(
    checkpoint: Mapping[str, Any], file: Path, cfg: CfgNode | None, values: Mapping[str, Any]
) -> None:
    """Raise CheckpointError if training cannot continue exactly from ``checkpoint``, with ``cfg``
    or the ``values`` of a LazyConfig; warn of the values that change it."""
    try:
        state = checkpoint["trainer"]
        optimizer, iteration = state.get("_trainer", state)["optimizer"], state["iteration"]
        groups, buffers = optimizer["param_groups"], optimizer["state"]
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
    stored, own = Provenance.read(checkpoint).config, checkpoint.get(KEY)
    if cfg is not None and stored:
        former, now = (_values(yaml.safe_load(text)) for text in (stored, cfg.dump()))
        _compare(former, now, file, _rates(groups[0], cfg, iteration + 1))
    elif values and isinstance(own, dict) and isinstance(own.get("values"), dict):
        _compare(own["values"], values, file)


def _compare(
    former: Mapping[str, Any], now: Mapping[str, Any], file: Path, follows: str = ""
) -> None:
    """Compare the values of the run that saved ``file`` with those of this one, by dotted key;
    ``follows`` is a sentence to add."""
    keys = [key for key in {**former, **now} if not FREE.fullmatch(key)]
    # The seed that was drawn for a negative one is in the checkpoint.
    drawn = [key for key in ("SEED", "train.seed") if str(now.get(key, -1)).startswith("-")]
    changed = [k for k in keys if former.get(k) != now.get(k) and k not in drawn]

    def listed(keys: Sequence[str], was: str) -> str:
        said = [f"{k} is {shorten(now.get(k))}, {was} {shorten(former.get(k))}" for k in keys]
        return "; ".join([*said[:MOST], *[f"{len(keys) - MOST} more"] * (len(keys) > MOST)])

    if ignored := [key for key in changed if KEPT.fullmatch(key)]:
        processes = " with the same number of processes" * ("SOLVER.IMS_PER_BATCH" in changed)
        raise CheckpointError(
            f"Cannot resume {file} with another optimizer or seed, which would be ignored: "
            f"{listed(ignored, 'was')}. Resume with the former{processes}, or start another run "
            "from MODEL.WEIGHTS."
        )
    if changed:
        if any(key.lower().startswith(DATA) for key in changed):
            follows = f" It reads the images in another order than an uninterrupted one.{follows}"
        logger.warning(
            "%s: %s. The resumed run continues with the new values.%s",
            *(file, listed(changed, "was trained with"), follows),
        )


def _values(content: Any) -> dict[str, Any]:
    """The values of a saved config, which lacks keys that have their defaults, by dotted key."""
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in all_defaults().items()}
    return {**defaults, **dict(leaves(CfgNode(content)))}


def _rates(group: Mapping[str, Any], cfg: CfgNode, iteration: int) -> str:
    """The learning rate of ``iteration`` by ``cfg``, where the optimizer's ``group`` was to have
    another: it is saved with that of the next iteration."""
    try:
        was, base = float(group["lr"]), float(group["initial_lr"])
    except (KeyError, TypeError, ValueError):  # a file may hold any value
        return ""
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], lr=base))
    scheduler.last_epoch = min(iteration, cfg.SOLVER.MAX_ITER)
    (rate,) = scheduler.get_lr()
    said = f" The learning rate of iteration {iteration} is {rate:.3g}, and was to be {was:.3g}."
    return "" if math.isclose(was, rate, abs_tol=1e-12) else said
