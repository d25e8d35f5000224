"""Mixed precision by config: in training (SOLVER.AMP) and in evaluation (TEST.PRECISION)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer

from ..errors import ConfigError

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def check_precision(cfg: CfgNode) -> None:
    """Raise ConfigError if the device cannot train in the precision of ``cfg``."""
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ConfigError(
            'SOLVER.AMP.DTYPE is "float16", whose gradients torch can scale only on a GPU, but '
            'MODEL.DEVICE is "cpu". Set it to "bfloat16", or SOLVER.AMP.ENABLED to False.'
        )


def set_precision(trainer: AMPTrainer, cfg: CfgNode) -> None:
    """Give ``trainer`` the precision of ``cfg``. bfloat16 has the range of float32: nothing needs
    to be scaled."""
    trainer.precision = _DTYPES[cfg.SOLVER.AMP.DTYPE]
    if trainer.precision == torch.bfloat16:
        trainer.grad_scaler = torch.amp.GradScaler(enabled=False)


def evaluation_precision(cfg: CfgNode) -> AbstractContextManager:
    """The context in which a model is evaluated."""
    if cfg.TEST.PRECISION == "float32":
        return nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, _DTYPES[cfg.TEST.PRECISION])
