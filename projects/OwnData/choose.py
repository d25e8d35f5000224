"""The config and the weights of a training on one's own data, where the user has chosen none."""

import functools
import logging
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

from gnws_d2.checkpoint import Provenance, read_checkpoint
from gnws_d2.checkpoint.contents import contents_of
from gnws_d2.checkpoint.resume import from_main_process
from gnws_d2.config import CONFIG_ROOT, load_config
from gnws_d2.model_zoo.fetch import is_available
from gnws_d2.model_zoo.published import Published, find, published

from .coco_file import read_coco
from .source import is_source, source_of

logger = logging.getLogger(__name__)

# Two configs each, for boxes and for boxes with masks.
ON_GPU = (
    "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml",
)
# Of the published detectors too, on small images and with the first stages frozen.
FINE_TUNED = ("Small/faster_rcnn_R_50_FPN_gn_ws.yaml", "Small/mask_rcnn_R_50_FPN_gn_ws.yaml")
FROM_RANDOM = ("Small/faster_rcnn_R_18_FPN_gn_ws.yaml", "Small/mask_rcnn_R_18_FPN_gn_ws.yaml")
# What training starts from.
DETECTOR, BACKBONE, RANDOM = "a trained detector", "an ImageNet backbone", "random weights"
HEADS = re.compile("rpn|proposal_generator|roi_head|bbox_head|cls_subnet|cls_score")


def choose_config(names: Sequence[str], device: str = "cuda", weights: str | None = None) -> str:
    """The packaged config for the training data ``names``: one that fine-tunes a published detector
    wherever that can be had, and for a CPU one of few operations.

    Args:
        device: MODEL.DEVICE.
        weights: MODEL.WEIGHTS, if the user has set it.
    """
    sources = filter(None, map(source_of, names))
    has_masks = any(read_coco(source.file, source.folder).has_masks for source in sources)
    if torch.cuda.is_available() and device != "cpu":
        return ON_GPU[has_masks]
    if weights is not None:
        return FROM_RANDOM[has_masks]
    is_had = from_main_process(lambda: is_available(_detector(has_masks)))
    return (FINE_TUNED if is_had else FROM_RANDOM)[has_masks]


def why_chosen(file: str) -> str:
    """A sentence on a model that :func:`choose_config` took because the detector is not to be had;
    "" for others."""
    for has_masks, config in enumerate(FROM_RANDOM):
        if (CONFIG_ROOT / config).resolve() == Path(file).resolve():
            name = _detector(has_masks).name
            return (
                f". The published detector {name} is in no cache or mirror, and its address does "
                "not answer: this small model starts from random weights, and finds less. To "
                f"fine-tune the detector, get it where there is a network: gnws zoo prefetch {name}"
            )
    return ""


def _detector(has_masks: int) -> Published:
    return find(load_config(FINE_TUNED[has_masks], ["MODEL.DEVICE", "cpu"]).MODEL.WEIGHTS)


def start_from_detector(cfg: CfgNode, file: str, explicit: Collection[str]) -> None:
    """Start training on COCO files from the published detector of the config ``file``, if there is
    one and MODEL.WEIGHTS is not among the ``explicit`` keys. Changes ``cfg``."""
    if "MODEL.WEIGHTS" in explicit or not any(map(is_source, cfg.DATASETS.TRAIN)):
        return
    for entry in published():
        is_of_config = (CONFIG_ROOT / entry.config).resolve() == Path(file).resolve()
        if is_of_config and not entry.is_backbone:
            cfg.MODEL.WEIGHTS = entry.uri
    if start_of(cfg.MODEL.WEIGHTS) == DETECTOR:
        logger.info("Training starts from %s. --weights chooses others.", cfg.MODEL.WEIGHTS)


def start_of(weights: str) -> str:
    """What ``weights``, a value of MODEL.WEIGHTS, are: DETECTOR, BACKBONE or RANDOM. A file without
    the name of a detector's head is a backbone."""
    if not weights:
        return RANDOM
    if "imagenet" in weights.lower():
        return BACKBONE
    file = weights.partition("?")[0]
    return DETECTOR if not os.path.isfile(file) or facts_of(file)[0] else BACKBONE


def facts_of(file: str) -> tuple[bool, Provenance]:
    """Whether a checkpoint is of a detector, and its provenance."""
    return _facts_of(file, os.stat(file).st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _facts_of(file: str, _: int) -> tuple[bool, Provenance]:
    # A start asks several times, and the file takes seconds to read.
    checkpoint = read_checkpoint(file)
    names = contents_of(checkpoint, file)["model"]
    return any(map(HEADS.search, names)), Provenance.read(checkpoint)
