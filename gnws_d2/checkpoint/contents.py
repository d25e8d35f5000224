"""The tensors of a model within a checkpoint, whichever program wrote it.

Sources: ``DetectionCheckpointer._load_file`` of Detectron2 (its own zoo, Caffe2, pycls),
``Runner.save_checkpoint`` and ``EMAHook`` of MMEngine, ``torch.optim.swa_utils.AveragedModel``.
"""

import re
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
    metadata = getattr(state, "_metadata", {})
    others = others if key else {}
    is_caffe2 = bool(state) and not any("." in name for name in state)
    if key == "blobs" or (is_caffe2 and any(name.endswith("_w") for name in state)):
        others["__author__"] = "Caffe2"
        state = {n: v for n, v in state.items() if np.ndim(v) and not n.endswith("_momentum")}
    if any(name.startswith("module.") for name in state):
        state = {n: v for n, v in state.items() if n not in _COUNTERS}
    tensors: Any = OrderedDict(
        (_bare(name), torch.from_numpy(value) if isinstance(value, np.ndarray) else value)
        for name, value in state.items()
    )
    tensors._metadata = {_bare(f"{name}.").rstrip("."): value for name, value in metadata.items()}
    return {**others, "model": tensors}


def _bare(name: str) -> str:
    return re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", ""))  # also of a compiled part
