"""Training on top of Detectron2's: launching, data order, trainer, evaluators."""

from .epochs import schedule_for
from .evaluators import build_evaluator
from .launch import create_ddp_model, launch
from .schedule import scale_schedule
from .trainer import Trainer

__all__ = [
    "Trainer",
    "build_evaluator",
    "create_ddp_model",
    "launch",
    "scale_schedule",
    "schedule_for",
]
