"""The tensors of a model within a checkpoint, whichever program wrote it.

Sources: ``DetectionCheckpointer._load_file`` of Detectron2 (its own zoo, Caffe2, pycls),
``Runner.save_checkpoint`` and ``EMAHook`` of MMEngine, ``torch.optim.swa_utils.AveragedModel``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError

Tensors = dict[str, torch.Tensor]

# Under which a program keeps the tensors; where several are there, the first are those that it
# evaluates with (MMEngine keeps the averaged ones as state_dict).
_KEYS = ("model", "state_dict", "blobs", "model_state", "ema_state_dict", "model_ema")
_COUNTERS = ("steps", "n_averaged")  # of averaged models, beside the wrapped one


def contents_of(found: Any, file: str) -> dict[str, Any]:
    """A checkpoint as Detectron2 has it: its tensors under "model", and everything else.

    "__author__" is Caffe2 where the names are those of Detectron before version 2. Names lose what
    DistributedDataParallel and torch.compile put into them. The versions of modules are kept.

    Raises:
        CheckpointError: it holds no state dict.
    """
    others = dict(found) if isinstance(found, Mapping) else {}
    key = next((key for key in _KEYS if isinstance(others.get(key), Mapping)), None)
    state = others.pop(key) if key else found
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"{file} holds no state dict, a dict of names and tensors. Save model.state_dict()."
        )
    if not key:
        others = {}
    is_caffe2 = bool(state) and not any("." in name for name in state)
    if key == "blobs" or (is_caffe2 and any(name.endswith("_w") for name in state)):
        others["__author__"] = "Caffe2"
        state = {n: v for n, v in state.items() if np.ndim(v) and not n.endswith("_momentum")}
    return {**others, "model": _unwrapped(state)}


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    wrapped = any(name.startswith("module.") for name in state)
    unwrapped: dict[str, Any] = OrderedDict(
        (_bare(name), torch.from_numpy(value) if isinstance(value, np.ndarray) else value)
        for name, value in state.items()
        if not (wrapped and name in _COUNTERS)
    )
    metadata = getattr(state, "_metadata", {})
    unwrapped._metadata = {  # type: ignore[attr-defined]
        _bare(f"{name}.").rstrip("."): value for name, value in metadata.items()
    }
    return unwrapped


def _bare(name: str) -> str:
    name = name.replace("_orig_mod.", "")  # also of a part that was compiled
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
