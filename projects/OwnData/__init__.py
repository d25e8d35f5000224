"""Training on one's own COCO files: check them, fit config and schedule to them.

A dataset's name may be a file, ``ANNOTATIONS.json[=IMAGE_FOLDER][#train|#val]``;
:func:`fit_to_data` registers those of a config and fits the config to them.
"""

from .arguments import data_opts, data_splits
from .coco_file import kept_files
from .fit import fit_to_data
from .lazy_data import fit_lazy_config, name_data
from .schedule import explicit_keys, packaged_config, schedule_for
from .source import is_source, short_name
from .start import choose_config, start_from_detector
from .summary import data_summary
from .truth import register_source

__all__ = [
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
    "register_source",
    "schedule_for",
    "short_name",
    "start_from_detector",
]
