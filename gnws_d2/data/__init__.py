"""Datasets that come with the package; importing this registers them with Detectron2."""

from . import digits

digits.register()
