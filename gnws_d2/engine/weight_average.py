"""An exponential moving average of the weights (EMA)."""

from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn


class WeightAverage(HookBase):
    """Averages what training changes: trainable parameters, and running statistics.

    Between steps the model has the average, so it is what is evaluated and saved; in a step, it has
    the weights that the optimizer updates. These are saved with the state of the trainer, from
    which a run resumes exactly. With w after t steps, the average moves by (1 - d) (w - average),
    d = min(decay, (t + 1) / (t + 10)): the first steps count less, as with timm and TensorFlow.

    A hook of all processes, before those that evaluate, save or change the model.

    Args:
        model: without a wrapper for several processes.
        decay: less than 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._steps = 0
        self._other: dict[str, torch.Tensor] = {}  # in a step the average, else what is trained

    def before_train(self) -> None:
        own = self._tensors()
        if not self._other:
            self._other = {name: tensor.detach().clone() for name, tensor in own.items()}
        self._other = {name: self._other[name].to(tensor) for name, tensor in own.items()}

    def before_step(self) -> None:
        self._swap()

    @torch.no_grad()
    def after_step(self) -> None:
        self._steps += 1
        decay = min(self._decay, (self._steps + 1) / (self._steps + 10))
        trained = [tensor.detach() for tensor in self._tensors().values()]
        torch._foreach_lerp_(list(self._other.values()), trained, 1 - decay)
        self._swap()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "weights": self._other}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._other = state["steps"], state["weights"]

    def _swap(self) -> None:
        for name, tensor in self._tensors().items():
            tensor.data, self._other[name] = self._other[name], tensor.data

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            name: tensor
            for name, tensor in self._model.state_dict(keep_vars=True).items()
            if tensor.requires_grad or name.endswith((".running_mean", ".running_var"))
        }
