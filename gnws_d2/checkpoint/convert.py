"""Checkpoint files under MMDetection's names, and under Detectron2's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import load_config
from .files import read_checkpoint, write_checkpoint
from .mmdet import detectron2_to_mmdet, mmdet_to_detectron2
from .provenance import KEY, Provenance
from .structure import standardized_parts


def state_dict_of(checkpoint: Any, key: str) -> dict[str, torch.Tensor]:
    """The state dict under ``key`` of a checkpoint, or the checkpoint if it is one itself."""
    state_dict = checkpoint.get(key, checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if isinstance(state_dict, Mapping) and all(str(n).startswith("module.") for n in state_dict):
        return {str(name).removeprefix("module."): value for name, value in state_dict.items()}
    return state_dict  # if it is none, the conversion says so


def detectron2_checkpoint(
    tensors: Mapping[str, torch.Tensor], provenance: Provenance
) -> dict[str, Any]:
    """What to save, so that any Detectron2 program loads converted ``tensors``."""
    checkpoint: dict[str, Any] = {"model": dict(tensors), KEY: provenance.as_dict()}
    if "stem.conv1.weight" in tensors:
        # Detectron2 then finds where in a model a bare backbone belongs.
        checkpoint["matching_heuristics"] = True
    return checkpoint


def mmdet_checkpoint(tensors: Mapping[str, torch.Tensor], provenance: Provenance) -> dict[str, Any]:
    """What to save, so that MMDetection loads converted ``tensors``."""
    meta: dict[str, Any] = {KEY: provenance.as_dict()}
    if provenance.classes:
        meta["dataset_meta"] = {"classes": provenance.classes}
    return {"meta": meta, "state_dict": dict(tensors)}


def convert_file(source: Path, target: Path, to: str, config: str | None = None) -> int:
    """Convert ``source`` to ``to`` ("detectron2" or "mmdet") and write it as ``target``.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: see :func:`~gnws_d2.checkpoint.mmdet_to_detectron2`.
        FileExistsError: ``target`` exists.
        OSError: it cannot be written.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists. Remove it, or choose another name.")
    checkpoint = read_checkpoint(source)
    if to == "detectron2":
        tensors = mmdet_to_detectron2(state_dict_of(checkpoint, "state_dict"), config)
        provenance = Provenance(source=source.name)
        if config is not None:
            cfg = load_config(config)
            provenance = Provenance.of(cfg, standardized_parts(cfg), source.name)
        write_checkpoint(detectron2_checkpoint(tensors, provenance), target)
    else:
        tensors = detectron2_to_mmdet(state_dict_of(checkpoint, "model"), config)
        write_checkpoint(mmdet_checkpoint(tensors, Provenance.read(checkpoint)), target)
    return len(tensors)
