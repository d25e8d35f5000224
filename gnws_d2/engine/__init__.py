"""Training on top of Detectron2's: launching, data order, trainer, evaluators."""

from .console import default_setup
from .epochs import schedule_for
from .evaluators import build_evaluator
from .launch import create_ddp_model, launch
from .output_folder import lock_output, locked_output
from .progress import FirstIterations, ProgressBar
from .resume import IterationSeed, ResumableLoader, save_final, seek_data
from .schedule import scale_schedule
from .stopping import StopOnSignal
from .trainer import Trainer

__all__ = [
    "FirstIterations",
    "IterationSeed",
    "ProgressBar",
    "ResumableLoader",
    "StopOnSignal",
    "Trainer",
    "build_evaluator",
    "create_ddp_model",
    "default_setup",
    "launch",
    "lock_output",
    "locked_output",
    "save_final",
    "scale_schedule",
    "schedule_for",
    "seek_data",
]
