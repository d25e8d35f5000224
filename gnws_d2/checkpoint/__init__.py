"""Checkpoint files: read safely, loaded strictly, and converted between two frameworks' names."""

from ..errors import CheckpointError
from ..files import write_checkpoint
from .checkpointer import Checkpointer, local_path
from .names import detectron2_to_mmdet, mmdet_to_detectron2
from .provenance import Provenance
from .read import read_checkpoint

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Provenance",
    "detectron2_to_mmdet",
    "local_path",
    "mmdet_to_detectron2",
    "read_checkpoint",
    "write_checkpoint",
]
