"""Detectron2's data parallelism, for models on the CPU as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.engine import defaults
from torch import nn

_create_ddp_model = defaults.create_ddp_model


def create_ddp_model(model: nn.Module, **options: Any) -> nn.Module:
    """``detectron2.engine.defaults.create_ddp_model``, which always passes ``device_ids=[local
    rank]``; DistributedDataParallel refuses that for a model on the CPU."""
    if next(model.parameters()).device.type == "cpu":
        options.setdefault("device_ids", None)
    return _create_ddp_model(model, **options)


@contextmanager
def used_by_default_trainer() -> Iterator[None]:
    """Let DefaultTrainer.__init__, which leaves no argument for it, call our own."""
    original = defaults.create_ddp_model
    defaults.create_ddp_model = create_ddp_model
    try:
        yield
    finally:
        defaults.create_ddp_model = original
