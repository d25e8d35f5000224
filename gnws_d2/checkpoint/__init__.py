"""Checkpoint files: reading them safely, and the names of their tensors."""

from .checkpointer import Checkpointer, CheckpointError
from .mmdet import detectron2_to_mmdet, mmdet_to_detectron2

__all__ = ["CheckpointError", "Checkpointer", "detectron2_to_mmdet", "mmdet_to_detectron2"]
