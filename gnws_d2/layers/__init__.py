"""The mathematics, on torch alone: importable without Detectron2."""

from .weight_standardization import WSConv2d, standardize_weight

__all__ = ["WSConv2d", "standardize_weight"]
