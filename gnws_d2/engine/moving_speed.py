"""How fast estimated batch statistics follow the batches during training."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.solver import build_lr_scheduler
from fvcore.common.param_scheduler import ConstantParamScheduler, ParamScheduler
from torch import nn

from ..config import ConfigError
from ..layers import EstimatedBatchNorm2d


class MovingSpeed(HookBase):
    """Sets ``moving_speed`` of every EstimatedBatchNorm2d before each step, and logs it.

    It is MODEL.BCN.MOVING_SPEED; with MODEL.BCN.SCHEDULE "lr", times the factor by which the
    learning rate has fallen. A function of config and iteration alone, it needs no state to
    resume; the layers save what they were trained with.

    Raises:
        ConfigError: MODEL.BCN.MOVING_SPEED is unset.
    """

    def __init__(self, cfg: CfgNode, layers: list[EstimatedBatchNorm2d]) -> None:
        self._layers = layers
        self._base = cfg.MODEL.BCN.MOVING_SPEED
        self._max_iter = cfg.SOLVER.MAX_ITER
        follows = cfg.MODEL.BCN.SCHEDULE == "lr"
        self._factor = lr_decay(cfg) if follows else ConstantParamScheduler(1.0)
        self._current = 0.0
        if not self._base:
            raise ConfigError(
                "MODEL.BCN.MOVING_SPEED is 0 (unset), and the model has norms with estimated "
                "statistics, which would never follow the data. Set it to more than 0 and at most "
                '1, such as 0.1, or choose the norm "BCN".'
            )

    def before_step(self) -> None:
        speed = self._base * self._factor(self.trainer.iter / self._max_iter)
        if speed != self._current:
            for layer in self._layers:
                layer.moving_speed = speed
            self._current = speed

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("moving_speed", self._current, smoothing_hint=False)


def lr_decay(cfg: CfgNode) -> ParamScheduler:
    """The learning rate as a fraction of SOLVER.BASE_LR, without its warm-up: while the learning
    rate is still small, the estimates have the longest way to go.

    Returns:
        A function of iteration / SOLVER.MAX_ITER.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.WARMUP_ITERS = 0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return build_lr_scheduler(cfg, optimizer)._multiplier
