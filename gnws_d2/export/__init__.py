"""Detectors in formats that run without Detectron2: TorchScript, torch.export, ONNX."""

from .compare import TOLERANCE, Comparison, compare
from .export import export
from .formats import FORMATS
from .interface import Detector, ExportError

__all__ = [
    "FORMATS",
    "TOLERANCE",
    "Comparison",
    "Detector",
    "ExportError",
    "compare",
    "export",
]
