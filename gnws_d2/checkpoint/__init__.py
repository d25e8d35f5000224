"""Checkpoint files: reading them safely and strictly, and the names of their tensors."""

from .checkpointer import Checkpointer, check_weights
from .files import CheckpointError
from .mmdet import detectron2_to_mmdet, mmdet_to_detectron2
from .provenance import Provenance

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Provenance",
    "check_weights",
    "detectron2_to_mmdet",
    "mmdet_to_detectron2",
]
