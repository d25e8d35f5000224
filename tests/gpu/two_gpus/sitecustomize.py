"""A machine that says it has two GPUs, to each Python program with this folder on its PYTHONPATH.

As CUDA, it hides them where CUDA_VISIBLE_DEVICES is empty. Nothing can run on them.
"""

import os

import torch


def device_count() -> int:
    return 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else 2


torch.cuda.device_count = device_count
torch.cuda.is_available = lambda: device_count() > 0
# What Detectron2 asks of any GPU, whatever MODEL.DEVICE says.
torch.cuda.get_device_name = lambda device=None: "none"
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.synchronize = lambda device=None: None
torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
torch.cuda.set_rng_state = lambda state, device=None: None
