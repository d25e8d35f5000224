"""Reading, mapping, filtering and loading datasets, on top of Detectron2's."""

from .filter import filter_dataset
from .images import image_size, read_frames, read_image, read_labels
from .load import dataset_errors, load_train_dataset
from .mapper import Mapper, NamingMapper, build_test_augmentation, check_mapped
from .shared import SharedRecords, load_once

__all__ = [
    "Mapper",
    "NamingMapper",
    "SharedRecords",
    "build_test_augmentation",
    "check_mapped",
    "dataset_errors",
    "filter_dataset",
    "image_size",
    "load_once",
    "load_train_dataset",
    "read_frames",
    "read_image",
    "read_labels",
]
