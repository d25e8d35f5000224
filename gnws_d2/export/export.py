"""Write a detector in a format, and check the file before it gets its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..files import atomic_write
from ..layers import fold
from .compare import TOLERANCE, Comparison, compare
from .formats import FORMATS
from .interface import Detector, ExportError


def export(
    model: nn.Module,
    format: str,
    file: str | Path,
    pictures: Sequence[torch.Tensor],
    facts: Mapping[str, object] | None = None,
    tolerance: float = TOLERANCE,
) -> list[Comparison]:
    """Write ``model``, its standardized weights stored in plain convolutions, to one file that
    takes images of any size, and compare what the file detects with what the model detects.

    Args:
        model: a Detectron2 model on the CPU; it stays as it is.
        format: a key of ``FORMATS``.
        file: where to write; appears when everything has been checked.
        pictures: (3, H, W) each, as :class:`Detector` takes them; the first is used for recording,
            and all are compared. Use at least two sizes.
        facts: stored in the file, as JSON by name.
        tolerance: see :func:`compare`.

    Returns:
        A comparison for each image.

    Raises:
        ExportError: the format does not support the model, the file cannot be written, or it
            detects something else.
    """
    chosen = FORMATS[format]
    folded = fold(model)
    if reason := chosen.refuse(folded):
        raise ExportError(f"{format} does not support this model: {reason}.")
    detector = Detector(folded)
    with torch.no_grad():
        expected = [detector(picture) for picture in pictures]
    with _write_errors(Path(file)), atomic_write(Path(file)) as partial:
        chosen.write(folded, pictures[0], partial, facts or {})
        run = chosen.load(partial)
        with torch.no_grad():
            found = [run(picture) for picture in pictures]
        results = [compare(e, f, tolerance) for e, f in zip(expected, found, strict=True)]
        for picture, result in zip(pictures, results, strict=True):
            if not result.equal:
                height, width = picture.shape[1:]
                raise ExportError(
                    f"{format}: of {result.expected} detections in an image of {width} x {height} "
                    f"the file finds {result.same} within {tolerance:g}, and "
                    f"{result.found - result.same} others. It was not kept."
                )
    return results


@contextmanager
def _write_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"{file} cannot be written ({error}). Make room, or choose another folder."
        ) from error
