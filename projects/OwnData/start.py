"""What a training on one's own data starts from: a config and weights."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

from gnws_d2.config import CONFIG_ROOT
from gnws_d2.model_zoo.published import published

from .coco_file import read_coco
from .source import Source, is_source

logger = logging.getLogger(__name__)

# Boxes, boxes and masks: those to fine-tune on a GPU, and those that a CPU trains in minutes.
ON_GPU = (
    "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml",
)
ON_CPU = ("Small/faster_rcnn_R_18_FPN_gn_ws.yaml", "Small/mask_rcnn_R_18_FPN_gn_ws.yaml")


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
