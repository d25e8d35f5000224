"""Gradient accumulation: one process computes the optimizer step of several."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError


def check_batch(cfg: CfgNode, processes: int) -> None:
    """Raise ConfigError if the batch does not divide among processes and micro-batches."""
    batch, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if batch % (processes * steps):
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which does not divide among {processes} processes "
            f"with SOLVER.ACCUMULATION_STEPS {steps} micro-batches each. Choose a batch that is a "
            f"multiple of {processes * steps}, or other numbers of processes or steps."
        )


def micro_batches(batch: list[Any], steps: int) -> list[list[Any]]:
    """Cut a batch, in order, into ``steps`` parts of the same size.

    Raises:
        ConfigError: the batch, one of a custom train loader, does not divide.
    """
    size, rest = divmod(len(batch), steps)
    if rest:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {steps}, but the train loader yields a batch of "
            f"{len(batch)} images. Let it yield multiples of {steps}, and drop the last batch if "
            "it is smaller."
        )
    return [batch[i : i + size] for i in range(0, len(batch), size)]


class AccumulatingTrainer(SimpleTrainer):
    """Runs each batch as micro-batches, one after the other, and steps once on the mean of their
    gradients, as ``steps`` times as many processes do with one micro-batch each.

    The device holds the activations of one micro-batch. The logged losses are those of the whole
    batch; what the model logs itself (accuracies, numbers of proposals) is logged once for each
    micro-batch.

    Args:
        model, data_loader, optimizer: see ``detectron2.engine.SimpleTrainer``.
        steps: the number of micro-batches.
        before_micro_batch: called with 0, 1, ... before the forward of each micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: Any,
        *,
        steps: int,
        before_micro_batch: Callable[[int], object] = lambda index: None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.steps = steps
        self._before_micro_batch = before_micro_batch

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        parts = micro_batches(next(self._data_loader_iter), self.steps)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        logged: dict[str, torch.Tensor] = {}
        for index, part in enumerate(parts):
            self._before_micro_batch(index)
            # Processes exchange their gradients in the last backward alone.
            with self._without_sync() if index < self.steps - 1 else nullcontext():
                with self._autocast():
                    losses = {k: loss / self.steps for k, loss in self.model(part).items()}
                self._scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                logged[name] = logged.get(name, 0) + loss.detach()
        self.after_backward()
        # Before the step: this raises if a loss is not finite.
        self._write_metrics(logged, data_time)
        self._step()

    def _without_sync(self) -> AbstractContextManager:
        parallel = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if parallel else nullcontext()

    def _autocast(self) -> AbstractContextManager:
        return nullcontext()

    def _scale(self, loss: Any) -> Any:
        return loss

    def _step(self) -> None:
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, AMPTrainer):
    """The same in mixed precision: one scale for all gradients of a step, updated once."""

    def _autocast(self) -> AbstractContextManager:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=self.precision)

    def _scale(self, loss: Any) -> Any:
        return self.grad_scaler.scale(loss)

    def _step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
