"""Training on top of Detectron2's: launching, data order, trainer, evaluators."""

from ..files import locked_output
from .data_order import (
    IterationSeed,
    ResumableLoader,
    checked_batches,
    map_one,
    save_final,
    seek_data,
)
from .evaluation import COCOEvaluator, build_evaluator, dataset_folder
from .hooks import StopOnSignal
from .launch import create_ddp_model, launch
from .schedule import scale_schedule
from .trainer import Trainer

__all__ = [
    "COCOEvaluator",
    "IterationSeed",
    "ResumableLoader",
    "StopOnSignal",
    "Trainer",
    "build_evaluator",
    "checked_batches",
    "create_ddp_model",
    "dataset_folder",
    "launch",
    "locked_output",
    "map_one",
    "save_final",
    "scale_schedule",
    "seek_data",
]
