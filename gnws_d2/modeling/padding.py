"""Few sizes of pictures, for what is prepared for each size anew."""

from __future__ import annotations

from typing import Any

from detectron2.modeling.backbone import FPN
from torch import nn

from ..config import ConfigError


def pad_to_multiples(model: nn.Module, multiple: int) -> None:
    """Let ``model`` pad its batches to heights and widths that are multiples of ``multiple``.

    The padding is seen by norms that look at whole pictures, GN among them: what is found changes
    by a little, as it does with the padding of a batch.

    Args:
        model: a Detectron2 model with a feature pyramid.
        multiple: in pixels, a multiple of what the pyramid pads to by itself.

    Raises:
        ConfigError: the model has no pyramid, or the multiple is none of the pyramid's.
    """
    backbone: Any = getattr(model, "backbone", None)
    if not isinstance(backbone, FPN):
        raise ConfigError(
            f"INPUT.SIZE_DIVISIBILITY is {multiple}, but the backbone is a "
            f"{type(backbone).__name__}, and only that of an FPN can be changed. Set it to 0."
        )
    needed = backbone.size_divisibility
    if multiple % needed:
        raise ConfigError(
            f"INPUT.SIZE_DIVISIBILITY is {multiple}, no multiple of the {needed} that the pyramid "
            "needs. Choose one, such as 128, or 0."
        )
    backbone._size_divisibility = multiple  # all that its property of that name gives
