"""The Triton side, under the names that ``stock`` has for torch's. Importing it imports Triton."""

from .backward import backward
from .forward import forward, normalize

__all__ = ["backward", "forward", "normalize"]
