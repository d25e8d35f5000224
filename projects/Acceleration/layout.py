"""How the tensors of a model lie in memory: channels_last, and images padded to few sizes."""

from typing import Any

import torch
from detectron2.modeling.backbone import FPN
from torch import nn

from gnws_d2.errors import ConfigError


def use_channels_last(model: nn.Module) -> None:
    """Store the weights of ``model`` with the channels as the fastest dimension, in place, and pass
    the batch to its backbone in the same format. Convolutions preserve it, and so do BatchNorm and
    fused norms; CUDA's GroupNorm does not.

    Tensor cores, and oneDNN on CPUs, compute in this format. Values, shapes and names do not
    change, and the state dict loads into either format.

    Args:
        model: a Detectron2 model, with a ``backbone``.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone: Any = model.backbone
    backbone.register_forward_pre_hook(_batch_channels_last)


def _batch_channels_last(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return args[0].contiguous(memory_format=torch.channels_last), *args[1:]


def pad_to_multiples(model: nn.Module, multiple: int) -> None:
    """Make ``model`` pad its batches to heights and widths that are multiples of ``multiple``.

    Norms over whole images, such as GN, see the padding, as they see that of a batch: scores
    change a little.

    Args:
        model: a Detectron2 model with a feature pyramid.
        multiple: in pixels, a multiple of what the pyramid needs.

    Raises:
        ConfigError: the model has no pyramid, or the pyramid needs another multiple.
    """
    backbone: Any = model.backbone
    needed = backbone.size_divisibility if isinstance(backbone, FPN) else 0
    if not needed or multiple <= 0 or multiple % needed:
        raise ConfigError(
            f"INPUT.SIZE_DIVISIBILITY is {multiple}, but the backbone, a "
            f"{type(backbone).__name__}, takes "
            + (f"multiples of {needed}" if needed else "none")
            + ". Set it to one, such as 128, or to 0."
        )
    backbone._size_divisibility = multiple  # its property of that name returns nothing else
