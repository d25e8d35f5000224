"""A detector that takes a fraction of a second a step, and a small Digits.

Tests import this, not conftest.py, a name that several folders have.
"""

from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling.proposal_generator import proposal_utils
from torch.nn import functional as F

TINY = [
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[48],[64]]"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_WORLD_SIZE", "0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"),
    *("SEED", "7", "VIS_PERIOD", "0"),
]
# A step of less than half the time: few anchors and proposals.
FEW_PROPOSALS = [
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
]
# The same computation run in other ways, all at once: keys of projects/Acceleration.
ELSEHOW = [
    *("MODEL.GN.FUSE_RELU", "always", "MODEL.GN.RECOMPUTE_ACTIVATIONS", "True"),
    *("MODEL.GN.RECOMPUTE_CONVOLUTIONS", "True", "MODEL.CHANNELS_LAST", "True"),
]


def register_tiny_digits(folder: Path) -> None:
    """Register the splits in ``folder`` as tiny_digits_train and tiny_digits_val."""
    for split in ("train", "val"):
        name = f"tiny_digits_{split}"
        register_coco_instances(name, {}, str(folder / f"digits_{split}.json"), str(folder / split))
        MetadataCatalog.get(name).thing_classes = list("0123456789")


def allow_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a detector train in float64, where Detectron2 or torch would refuse it or round."""
    nms, cross_entropy = proposal_utils.batched_nms, F.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        proposal_utils,
        "batched_nms",
        lambda boxes, scores, *args: nms(boxes, scores.float(), *args),
    )
    monkeypatch.setattr(
        F,
        "binary_cross_entropy_with_logits",
        lambda logits, target, **kw: cross_entropy(logits, target.to(logits.dtype), **kw),
    )
