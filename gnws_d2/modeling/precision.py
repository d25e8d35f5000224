"""The precision of evaluation, by config (TEST.PRECISION)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode


def evaluation_precision(cfg: CfgNode) -> AbstractContextManager:
    """The context in which a model is evaluated."""
    if cfg.TEST.PRECISION == "float32":
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, getattr(torch, cfg.TEST.PRECISION))
