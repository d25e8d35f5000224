"""Convolutions that standardize their weight; state dicts and the optimizer hold the raw weight.

Each is a drop-in for the torch class whose name it extends: the same arguments, the same parameter
names and shapes, so that checkpoints interchange.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .weight_standardization import (
    check_fan_in,
    measure,
    standardize_weight,
    standardized_convolution,
    takes_plain_operations,
)

_MARK = "weight_standardized"  # in the metadata of a state dict


_step: object | None = None  # within unchanged_weights


@contextmanager
def unchanged_weights() -> Iterator[None]:
    """Within it no weight changes, as in the micro-batches of a step of the optimizer: training
    measures each once. By itself it does so in each forward, as not every optimizer leaves a trace
    at the weights that it changes."""
    global _step
    outer, _step = _step, object()
    try:
        yield
    finally:
        _step = outer


class _Kept(NamedTuple):
    value: Any  # the standardized weight, or in training the statistics that give it
    key: tuple[object, ...]  # what identifies the raw weight that it was computed from
    raw: Tensor  # holds the storage of that weight: no other tensor can get its address


class StandardizedConv(_ConvNd):
    """The base class of all standardized convolutions, before the plain class in their bases.

    In evaluation mode and for frozen weights, the standardized weight is computed once and kept
    until the weight changes: by an optimizer's step, ``load_state_dict``, an in-place edit, another
    tensor, or ``.to()``. ``train()`` and ``eval()`` drop it: call one after a write that leaves no
    trace, through ``weight.data`` or by a fused optimizer. In training, see
    :func:`unchanged_weights`.

    Args:
        eps: see :func:`~gnws_d2.layers.standardize_weight`.
        args, kwargs: those of the plain class.

    Raises:
        ValueError: the fan-in (input channels of a group x kernel area) is 1.
    """

    # Class attributes, so that a convolution turned into this class in place has them as well.
    eps: float = 1e-5
    _kept: _Kept | None = None

    def __init__(self, *args: Any, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_fan_in(self._filters(self.weight).shape)
        self.eps = eps

    def standardized_weight(self) -> Tensor:
        """The weight that is convolved with, in the shape and dtype of ``weight``."""
        weight = self.weight
        if self._is_trained(weight) or takes_plain_operations(weight):
            return self._standardize(weight)
        return self._keep(weight, False)

    def _keep(self, weight: Tensor, trained: bool) -> Any:
        """The statistics or else the standardized weight, computed again if the weight changed."""
        has_version = isinstance(weight, nn.Parameter) and not weight.is_inference()
        # The address changes where ``weight.data`` is replaced, the version by edits in place.
        place = (weight.data_ptr(), has_version and weight._version, weight.shape, weight.stride())
        key, kept = (*place, self.eps, trained and _step), self._kept
        if kept is None or kept.key != key or not has_version or (trained and _step is None):
            # An inference tensor could not be used for training the layers before this one.
            with torch.inference_mode(False), torch.no_grad():
                value = measure(weight, self.eps) if trained else self._standardize(weight)
                kept = _Kept(value, key, weight.detach())
            self._kept = kept if has_version else None
        return kept.value

    def _standardize(self, weight: Tensor) -> Tensor:
        return standardize_weight(weight, self.eps)

    def _filters(self, weight: Tensor) -> Tensor:
        """``weight`` as (C_out, C_in / groups, *kernel_size)."""
        return weight

    def _is_trained(self, weight: Tensor) -> bool:
        # A forward of training that takes no gradients rounds as one that does.
        return weight.requires_grad and (self.training or torch.is_grad_enabled())

    def train(self, mode: bool = True) -> "StandardizedConv":
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "StandardizedConv":
        self._kept = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Beside the version that torch keeps of every module, so that no name changes.
        getattr(destination, "_metadata", {}).get(prefix[:-1], {})[_MARK] = True

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # Without metadata, as in a converted file, nothing is known.
        is_of_module = "version" in local_metadata and f"{prefix}weight" in state_dict
        if is_of_module and _MARK not in local_metadata:
            warnings.warn(
                "Weights of a convolution without Weight Standardization are loaded into a "
                "standardized one, which computes something else. Train the network further, build "
                "it without standardization, or load other weights.",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # torch's convolutions call this with their own weight.
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        plain = plain and x.dim() == weight.dim() and self._is_trained(weight)
        if plain and not takes_plain_operations(weight):
            geometry = (self.stride, self.padding, self.dilation, self.groups)
            return standardized_convolution(x, weight, bias, geometry, self._keep(weight, True))
        return super()._conv_forward(x, self.standardized_weight(), bias)


class WSConv1d(StandardizedConv, nn.Conv1d):
    """``torch.nn.Conv1d`` with a standardized weight."""


class WSConv2d(StandardizedConv, nn.Conv2d):
    """``torch.nn.Conv2d`` and ``detectron2.layers.Conv2d`` with a standardized weight. ``norm`` and
    then ``activation`` are applied to its output. Takes and returns (N, C, H, W), also N = 0."""

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class WSConv3d(StandardizedConv, nn.Conv3d):
    """``torch.nn.Conv3d`` with a standardized weight."""


class _WSConvTranspose(StandardizedConv):
    """Has its filters along the second dimension: (C_in, C_out / groups, *kernel_size)."""

    def _filters(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def _standardize(self, weight: Tensor) -> Tensor:
        standardized = standardize_weight(self._filters(weight), self.eps)
        return standardized.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        dims = len(self.kernel_size)
        output_padding = self._output_padding(  # type: ignore[operator]
            x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        convolve = getattr(nn.functional, f"conv_transpose{dims}d")
        return convolve(
            *(x, self.standardized_weight(), self.bias, self.stride, self.padding),
            *(output_padding, self.groups, self.dilation),
        )


class WSConvTranspose1d(_WSConvTranspose, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with a standardized weight."""


class WSConvTranspose2d(_WSConvTranspose, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` with a standardized weight."""


class WSConvTranspose3d(_WSConvTranspose, nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` with a standardized weight."""


_KINDS = (WSConv1d, WSConv2d, WSConv3d, WSConvTranspose1d, WSConvTranspose2d, WSConvTranspose3d)

# A plain class, and its standardized counterpart.
STANDARDIZED: dict[type[nn.Module], type[StandardizedConv]] = {k.__bases__[1]: k for k in _KINDS}
