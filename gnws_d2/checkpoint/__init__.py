"""Checkpoint files: reading them safely and strictly, and the names of their tensors."""

from .checkpointer import Checkpointer
from .files import CheckpointError
from .mmdet import detectron2_to_mmdet, mmdet_to_detectron2
from .origin import Origin

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Origin",
    "detectron2_to_mmdet",
    "mmdet_to_detectron2",
]
