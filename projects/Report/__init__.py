"""The report of an evaluation: plots, images, and one HTML page with all of them."""

from .images import sheet
from .painter import ALPHA, Painter
from .prediction_images import PredictionImages
from .report import report_run, suggested_threshold, try_report

__all__ = [
    "ALPHA",
    "Painter",
    "PredictionImages",
    "report_run",
    "sheet",
    "suggested_threshold",
    "try_report",
]
