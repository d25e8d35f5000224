"""Detectron2's checkpointer, refusing what it cannot read safely or at all."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file, the finding and the cure."""


class Checkpointer(DetectionCheckpointer):
    """Loads tensors and plain values only: nothing from a file is executed."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            raise CheckpointError(
                f"{filename} is a pickle, and reading a pickle can run any program hidden in it. "
                "Load it with Detectron2 where you trust it, and save model.state_dict() as .pth."
            )
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{f} holds more than tensors and plain values, or is no checkpoint at all; it was "
                f"not loaded, because loading it could run a program hidden in it: {error}"
            ) from error
        except (RuntimeError, EOFError, OSError) as error:
            raise CheckpointError(
                f"{f} cannot be read ({error}): it is damaged or cut off. Fetch it again, or name "
                "another in MODEL.WEIGHTS; to resume, name an earlier checkpoint of the run in "
                "OUTPUT_DIR/last_checkpoint."
            ) from error
