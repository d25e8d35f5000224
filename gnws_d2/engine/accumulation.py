"""One step of the optimizer: gradient accumulation and mixed precision.

One process computes the step of several: it runs its batch as micro-batches, one after the other,
and steps once on the mean of their gradients.
"""

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from ..layers import unchanged_weights


def micro_batches(batch: list[Any], steps: int) -> list[list[Any]]:
    """Cut a batch, in order, into ``steps`` parts of the same size.

    Raises:
        ConfigError: the batch, one of a custom train loader, does not divide.
    """
    if steps == 1:
        return [batch]  # of any kind
    size, rest = divmod(len(batch), steps)
    if rest:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {steps}, but the train loader yields a batch of "
            f"{len(batch)} images. Let it yield multiples of {steps}, and drop the last batch if "
            "it is smaller."
        )
    return [batch[i : i + size] for i in range(0, len(batch), size)]


def fused(optimizer: Any) -> Any:
    """Let SGD, also with Detectron2's clipping, make its step in one kernel, on a CPU too, unless
    ``fused`` was chosen; results are those of other ways within rounding. A run that resumes from a
    checkpoint of another way goes on in that."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        is_known = all(p.device.type in ("cpu", "cuda") for p in group["params"])
        if group["fused"] is None and is_known:
            # Not by the constructor, after which GradScaler leaves unscaling to the kernel, and
            # clipping would see scaled gradients.
            group.update(fused=True, foreach=False)
            # Which the kernel omits, and what was computed of the weights would pass for theirs.
            optimizer.register_step_post_hook(functools.partial(_count_change, group["params"]))
    return optimizer


def _count_change(parameters: Any, *_: Any) -> None:
    torch.autograd.graph.increment_version(parameters)


class AccumulatingTrainer(AMPTrainer):
    """Computes in each step what ``steps`` times as many processes compute with one micro-batch
    each. With one step in float32 it computes what Detectron2's SimpleTrainer does, with one step
    in half precision what its AMPTrainer does, and on the CPU as well.

    The device holds the activations of one micro-batch. The logged losses are those of the whole
    batch; what the model logs itself (accuracies, numbers of proposals) is logged once for each
    micro-batch.

    Args:
        model: yields a loss, or a dict of losses, in training.
        data_loader, optimizer: see ``detectron2.engine.SimpleTrainer``.
        steps: the number of micro-batches.
        precision: of the forward, by autocast. float16 needs its loss scaled.
        before_micro_batch: called with 0, 1, ... before the forward of each micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: Any,
        *,
        steps: int = 1,
        precision: torch.dtype = torch.float32,
        before_micro_batch: Callable[[int], object] = lambda index: None,
    ) -> None:
        self._device = next(model.parameters()).device.type
        # One scale for all gradients of a step. Disabled, it passes on what it is given.
        scaler = torch.amp.GradScaler(self._device, enabled=precision == torch.float16)
        super().__init__(model, data_loader, fused(optimizer), grad_scaler=scaler)
        self.steps = steps
        self.precision = precision
        self._before_micro_batch = before_micro_batch

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        parts = micro_batches(next(self._data_loader_iter), self.steps)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        logged: dict[str, torch.Tensor] = {}
        with unchanged_weights():
            for index, part in enumerate(parts):
                for name, loss in self._micro_batch(index, part).items():
                    logged[name] = logged.get(name, 0) + loss.detach()
        self.after_backward()
        # Before the step: this raises if a loss is not finite.
        self._write_metrics(logged, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _micro_batch(self, index: int, part: list[Any]) -> dict[str, torch.Tensor]:
        self._before_micro_batch(index)
        # Processes exchange their gradients in the last backward alone.
        is_local = index < self.steps - 1 and isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if is_local else nullcontext():
            with torch.autocast(self._device, self.precision, self.precision != torch.float32):
                found = self.model(part)
                found = found if isinstance(found, dict) else {"total_loss": found}
                losses = {name: loss / self.steps for name, loss in found.items()}
            self.grad_scaler.scale(sum(losses.values())).backward()
        return losses

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # It is empty or missing after another precision.
        scale = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scale})
