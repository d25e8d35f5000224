"""Standardization of Detectron2's models, registered with Detectron2."""

from . import meta_arch, proposal_generator, roi_heads  # noqa: F401  register their classes
from .compile import compile_parts
from .fuse import fuse_norm_relu
from .standardize import StandardizationReport, part_of, standardize

__all__ = ["StandardizationReport", "compile_parts", "fuse_norm_relu", "part_of", "standardize"]
