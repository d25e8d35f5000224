"""Detectors in formats that run without Detectron2: TorchScript, torch.export, ONNX, OpenVINO."""

from .compare import EXACT, REORDERED, ROUNDED, Comparison, Tolerance, compare
from .exporter import Exporter, export
from .formats import FORMATS
from .interface import Detector, Outputs
from .runtime import Exported, ExportedModel, load_exported

__all__ = [
    "EXACT",
    "FORMATS",
    "REORDERED",
    "ROUNDED",
    "Comparison",
    "Detector",
    "Exported",
    "ExportedModel",
    "Exporter",
    "Outputs",
    "Tolerance",
    "compare",
    "export",
    "load_exported",
]
