"""The report of an evaluation: plots, images, and one HTML page with all of them."""

from .matching import Matches, ReportError, match
from .run import dataset_folder, report_run, try_report
from .write import write_report

__all__ = [
    "Matches",
    "ReportError",
    "dataset_folder",
    "match",
    "report_run",
    "try_report",
    "write_report",
]
