"""Detectors in formats that run without Detectron2: TorchScript, torch.export, ONNX,
OpenVINO."""

from gnws_d2.errors import GnwsError

from .compare import EXACT, REORDERED, ROUNDED, Comparison, Tolerance, compare
from .exported_model import ExportedModel
from .exporter import Exporter, export
from .formats import FORMATS
from .interface import Detector
from .runtime import Exported, is_exported, load_exported

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
    "GnwsError",
    "Tolerance",
    "compare",
    "export",
    "is_exported",
    "load_exported",
]
