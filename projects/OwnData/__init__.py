"""Train on custom COCO files: check them, and fit a config and its schedule to them.

The name of a dataset may be a file, ``ANNOTATIONS.json[=IMAGE_FOLDER][#train|#val]``.
:func:`fit_to_data` registers the files that a config names, and fits the config to them. See
README.md for the other functions.
"""

from .arguments import data_opts, data_splits
from .choose import choose_config, start_from_detector, why_chosen
from .coco_file import kept_files
from .fit import fit_to_data
from .image_files import path_key
from .lazy_data import fit_lazy_config, name_data
from .schedule import as_in, check_lengths, explicit_keys, packaged_config, schedule_for
from .source import is_source, short_name
from .summary import data_summary, readable
from .tiles import tile_windows

__all__ = [
    "as_in",
    "check_lengths",
    "choose_config",
    "data_opts",
    "data_splits",
    "data_summary",
    "explicit_keys",
    "fit_lazy_config",
    "fit_to_data",
    "is_source",
    "kept_files",
    "name_data",
    "packaged_config",
    "path_key",
    "readable",
    "schedule_for",
    "short_name",
    "start_from_detector",
    "tile_windows",
    "why_chosen",
]
