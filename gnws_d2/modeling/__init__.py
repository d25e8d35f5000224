"""Standardization of Detectron2's models, registered with Detectron2."""

from . import meta_arch  # noqa: F401  registers WeightStandardizedModel
from .standardize import StandardizationReport, standardize

__all__ = ["StandardizationReport", "standardize"]
