"""Datasets: those that come with the package, registered on import, and COCO files of the user.

A dataset's name may be a file, ``ANNOTATIONS.json[=IMAGE_FOLDER][#train|#val]``;
:func:`fit_to_data` registers those of a config and fits the config to them.
"""

from . import digits
from .catalog import coco_truth, register_source
from .errors import DatasetError
from .fit import fit_to_data
from .images import read_image
from .source import is_source
from .summary import data_summary

__all__ = [
    "DatasetError",
    "coco_truth",
    "data_summary",
    "fit_to_data",
    "is_source",
    "read_image",
    "register_source",
]

digits.register()
