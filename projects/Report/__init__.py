"""The report of an evaluation: plots, images, and one HTML page with all of them."""

from .images import sheet
from .painter import Painter
from .prediction_images import PredictionImages
from .report import report_run, suggested_threshold, try_report

__all__ = ["Painter", "PredictionImages", "report_run", "sheet"]
__all__ += ["suggested_threshold", "try_report"]
