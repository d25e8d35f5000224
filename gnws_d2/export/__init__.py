"""Detectors in formats that run without Detectron2: TorchScript, torch.export, ONNX,
OpenVINO."""

from .compare import EXACT, REORDERED, ROUNDED, Comparison, Tolerance, compare
from .export import Exporter, export
from .exported_model import ExportedModel
from .formats import FORMATS
from .interface import Detector, ExportError
from .runtime import Exported, is_exported, load_exported

__all__ = [
    "EXACT",
    "FORMATS",
    "REORDERED",
    "ROUNDED",
    "Comparison",
    "Detector",
    "ExportError",
    "Exported",
    "ExportedModel",
    "Exporter",
    "Tolerance",
    "compare",
    "export",
    "is_exported",
    "load_exported",
]
