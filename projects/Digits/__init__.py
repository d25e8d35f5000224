"""Digits: a small detection and segmentation dataset in COCO format, made on the spot.

Scanned handwritten digits, enlarged and drawn on textured backgrounds: 1 to 4 in an image of
160x160 pixels, 10 classes "0" to "9". It needs no download, and a small Mask R-CNN learns it from
random weights in minutes. Masks are stored as RLE, so train with
``INPUT.MASK_FORMAT = "bitmask"``. Importing this module registers the datasets.

Source of the scans: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49 (CC BY 4.0), as packed in
scikit-learn's ``load_digits``.
"""

from .catalog import register
from .make import NUM_TRAIN, NUM_VAL, make_digits
from .scans import load_scans

__all__ = ["NUM_TRAIN", "NUM_VAL", "load_scans", "make_digits", "register"]

register()
