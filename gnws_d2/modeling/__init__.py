"""Standardization of Detectron2's models, registered with Detectron2."""

from . import meta_arch  # noqa: F401  registers WeightStandardizedModel
from .standardize import StandardizationReport, part_of, standardize

__all__ = ["StandardizationReport", "part_of", "standardize"]
