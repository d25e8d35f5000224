"""Checkpoint files."""

from .checkpointer import Checkpointer, CheckpointError

__all__ = ["CheckpointError", "Checkpointer"]
