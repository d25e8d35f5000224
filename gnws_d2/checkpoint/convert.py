"""Checkpoint files under MMDetection's names, and under Detectron2's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import get_cfg

from ..config import load_config
from ..errors import CheckpointError
from ..files import write_checkpoint
from ..modeling import StandardizationReport
from .names import CPU, detectron2_to_mmdet, mmdet_to_detectron2
from .provenance import KEY, Provenance
from .read import read_checkpoint
from .structure import build_on_meta


def detectron2_checkpoint(
    tensors: Mapping[str, torch.Tensor], provenance: Provenance
) -> dict[str, Any]:
    """Tensors under Detectron2's names as a checkpoint that any Detectron2 program loads."""
    if "stem.conv1.weight" not in tensors:
        return {"model": dict(tensors), KEY: provenance.as_dict()}
    # A bare backbone, before any detector was trained: Detectron2 then finds where it belongs.
    others: Any = dict.fromkeys(("config", "classes", "category_ids", "anchors", "score_threshold"))
    parts = [part for part in provenance.standardized or () if part in ("stem", "backbone")]
    backbone = replace(provenance, **others, standardized=parts)
    return {"model": dict(tensors), KEY: backbone.as_dict(), "matching_heuristics": True}


def convert_file(source: Path, target: Path, to: str, config: str | None = None) -> int:
    """Convert ``source`` to ``to`` ("detectron2" or "mmdet") and write it as ``target``; return the
    number of tensors.

    Raises:
        CheckpointError: see :func:`~gnws_d2.checkpoint.mmdet_to_detectron2`.
        FileExistsError: ``target`` exists.
        FileError: it cannot be written.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists. Remove it, or choose another name.")
    checkpoint = read_checkpoint(source)
    rename = detectron2_to_mmdet if to == "mmdet" else mmdet_to_detectron2
    try:
        tensors = rename(checkpoint, config)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    trained = Provenance.read(checkpoint)
    if to == "mmdet":
        meta: dict[str, Any] = {KEY: trained.as_dict()}
        if trained.classes:
            meta["dataset_meta"] = {"classes": trained.classes}
        content: dict[str, Any] = {"meta": meta, "state_dict": tensors}
    else:
        provenance = Provenance(source=source.name)
        if config is not None:
            cfg = load_config(config, CPU)
            standardized = StandardizationReport.of(build_on_meta(cfg)).standardized
            cfg.MODEL.DEVICE = get_cfg().MODEL.DEVICE  # the file may be used on another machine
            provenance = Provenance.of(cfg, standardized, source.name)
        if trained.classes not in (None, provenance.classes):
            provenance = replace(provenance, classes=trained.classes, category_ids=None)
        content = detectron2_checkpoint(tensors, provenance)
    write_checkpoint(content, target)
    return len(tensors)
