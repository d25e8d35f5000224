"""How fast estimated batch statistics follow the batches, over a training."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.solver import build_lr_scheduler
from torch import nn

from ..config import ConfigError
from ..layers import EstimatedBatchNorm2d


class MovingSpeed(HookBase):
    """Sets ``moving_speed`` of every EstimatedBatchNorm2d before each step, and logs it.

    It is MODEL.BCN.MOVING_SPEED, with MODEL.BCN.SCHEDULE "lr" times the factor by which the
    learning rate has fallen by then. A function of config and iteration alone, it needs no state to
    resume; the layers save what they were trained with.

    Raises:
        ConfigError: MODEL.BCN.MOVING_SPEED is unset.
    """

    def __init__(self, cfg: CfgNode, layers: list[EstimatedBatchNorm2d]) -> None:
        self._layers = layers
        self._base = cfg.MODEL.BCN.MOVING_SPEED
        self._decay = _Decay(cfg) if cfg.MODEL.BCN.SCHEDULE == "lr" else None
        self._current = 0.0
        if not self._base:
            raise ConfigError(
                "MODEL.BCN.MOVING_SPEED is 0 (unset), and the model has norms with estimated "
                "statistics, which would never follow the data. Set it to more than 0 and at most "
                '1, such as 0.1, or choose the norm "BCN".'
            )

    def before_step(self) -> None:
        speed = self._base
        if self._decay is not None:
            speed *= self._decay.at(self.trainer.iter)
        if speed != self._current:
            for layer in self._layers:
                layer.moving_speed = speed
            self._current = speed

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("moving_speed", self._current, smoothing_hint=False)


class _Decay:
    """The learning rate of a config as a fraction of SOLVER.BASE_LR, without its warm-up: while the
    learning rate is still small the estimates have the longest way to go."""

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.WARMUP_ITERS = 0
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        self._scheduler = build_lr_scheduler(cfg, optimizer)

    def at(self, iteration: int) -> float:
        self._scheduler.last_epoch = iteration
        return self._scheduler.get_lr()[0]
