"""Gradient accumulation: the optimizer step of a batch that does not fit into memory at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import ConfigError
from .large_batch import check_known, share_out, taking


def check_batch(cfg: CfgNode, processes: int) -> None:
    """Raise ConfigError where the batch does not divide among processes and micro-batches."""
    batch, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if batch % (processes * steps):
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which does not divide among {processes} processes "
            f"with SOLVER.ACCUMULATION_STEPS {steps} micro-batches each. Choose a batch that is a "
            f"multiple of {processes * steps}, or other numbers of processes or steps."
        )


def micro_batches(batch: list[Any], steps: int) -> list[list[Any]]:
    """Cut a batch, in order, into ``steps`` parts of the same size."""
    size = len(batch) // steps
    return [batch[i : i + size] for i in range(0, len(batch), size)]


class AccumulatingTrainer(SimpleTrainer):
    """Runs each batch of the loader as micro-batches, and steps once on their summed gradients.

    The activations on the device are those of one micro-batch; the loader is the one that there
    is without accumulation, and so are the images of a step, and their order. The logged losses
    are those of the whole batch. What the model itself logs (accuracies, numbers of proposals) is
    logged once for each micro-batch.

    Args:
        model, data_loader, optimizer: those of ``detectron2.engine.SimpleTrainer``.
        steps: the number of micro-batches.
        normalizer: "batch" runs the micro-batches so that they give the losses and gradients of
            the whole batch (see :mod:`.large_batch`); "micro_batch" runs each as if it were one,
            and takes the mean of their losses, which is what processes do.
    """

    def __init__(
        self, model: nn.Module, data_loader: Any, optimizer: Any, *, steps: int, normalizer: str
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.steps = steps
        self._whole = normalizer == "batch"
        if self._whole:
            check_known(_bare(model))

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        logged: dict[str, torch.Tensor] = {}
        for losses in self.forwards(batch):
            self._scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                logged[name] = logged.get(name, 0) + loss.detach()
        self.after_backward()
        # Before the step, because this is what stops at a loss that is not finite.
        self._write_metrics(logged, data_time)
        self._step()

    def forwards(self, batch: list[Any]) -> Iterator[dict[str, torch.Tensor]]:
        """Run a batch; give the losses of each micro-batch, weighted, for a backward before the
        next is run."""
        parts = micro_batches(batch, self.steps)
        if self._whole:
            shares = share_out(_bare(self.model), parts, self._autocast)
        for i, part in enumerate(parts):
            # Processes exchange their gradients in the last backward alone.
            with self._without_sync() if part is not parts[-1] else nullcontext():
                with self._autocast():
                    if self._whole:
                        with taking(_bare(self.model), shares[i]):
                            losses = self.model(part)
                        losses = {k: loss * shares[i].weights[k] for k, loss in losses.items()}
                    else:
                        losses = {k: loss / self.steps for k, loss in self.model(part).items()}
                yield losses

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
    """The same in mixed precision: one scale for all gradients of a step, one update of it."""

    def _autocast(self) -> AbstractContextManager:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=self.precision)

    def _scale(self, loss: Any) -> Any:
        return self.grad_scaler.scale(loss)

    def _step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
