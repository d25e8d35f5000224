"""The mathematics, on torch alone: importable without Detectron2."""

from .batch_channel_norm import BatchChannelNorm2d, EstimatedBatchNorm2d, SyncBatchNorm2d
from .convert import ConversionReport, convert
from .fold import fold
from .weight_standardization import standardize_weight
from .ws_conv import (
    StandardizedConv,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    WSConvTranspose1d,
    WSConvTranspose2d,
    WSConvTranspose3d,
    unchanged_weights,
)

__all__ = [
    "BatchChannelNorm2d",
    "ConversionReport",
    "EstimatedBatchNorm2d",
    "StandardizedConv",
    "SyncBatchNorm2d",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvTranspose1d",
    "WSConvTranspose2d",
    "WSConvTranspose3d",
    "convert",
    "fold",
    "standardize_weight",
    "unchanged_weights",
]
