"""The report of an evaluation: plots, images, and one HTML page with all of them."""

from .matching import Matches, ReportError, match
from .write import write_report

__all__ = ["Matches", "ReportError", "match", "write_report"]
