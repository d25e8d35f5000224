"""The mathematics, on torch alone: importable without Detectron2."""

from .batch_channel_norm import BatchChannelNorm2d, EstimatedBatchNorm2d
from .sync_batch_norm import SyncBatchNorm2d
from .weight_standardization import WSConv2d, standardize_weight

__all__ = [
    "BatchChannelNorm2d",
    "EstimatedBatchNorm2d",
    "SyncBatchNorm2d",
    "WSConv2d",
    "standardize_weight",
]
