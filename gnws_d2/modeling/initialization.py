"""Initialization of the layers that an ImageNet backbone lacks, where MMDetection's differs from
Detectron2's.

Convolutions of heads, pyramid outputs, RPN, box predictor and deconvolution start from the same
distributions in both. Source: ``init_cfg`` and ``init_weights`` of ``FPN``, ``ConvFCBBoxHead`` and
``FCNMaskHead`` of MMDetection 3.3.0.
"""

from collections.abc import Iterable

from torch import nn


def init_xavier(layers: Iterable[nn.Module]) -> None:
    """Xavier uniform. Detectron2 uses the fan-in alone: for the lateral convolutions of FPN, of 512
    to 2048 channels, this is 1.15 to 1.33 times its deviation."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def init_mask_predictor(head: nn.Module) -> None:
    """Kaiming normal by fan-out for the last layer of a ``MaskRCNNConvUpsampleHead``: a deviation
    of sqrt(2 / classes), where Detectron2's is 0.001. Other mask heads stay as they are."""
    predictor = getattr(head, "predictor", None)
    if predictor is not None:
        nn.init.kaiming_normal_(predictor.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(predictor.bias)
