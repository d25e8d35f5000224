"""Write a detector in a format, and check the file before it gets its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from gnws_d2.errors import GnwsError
from gnws_d2.files import publish
from gnws_d2.layers import fold

from .compare import Comparison, Tolerance, compare
from .formats import FORMATS
from .interface import INSTALL, Detector, Outputs, output_names
from .recording import Recording
from .runtime import load_exported


class Exporter:
    """Writes a detector, its standardized weights stored in plain convolutions, to files that take
    images of any size, and compares what each file detects with what the model detects. What
    several formats need, such as the recorded graph, is made once.

    Args:
        model: a Detectron2 model on the CPU; it stays as it is.
        images: (3, H, W) each, as :class:`Detector` takes them; the first is used for recording,
            all for the ranges of 8-bit integers, and all are compared. Use at least two sizes.
        facts: stored in each file, as JSON by name, and with them the names of the ``outputs``.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[torch.Tensor],
        facts: Mapping[str, object] | None = None,
    ) -> None:
        folded = fold(model)
        self._recording = Recording(
            folded, images, {**(facts or {}), "outputs": output_names(folded)}
        )

    @cached_property
    def _expected(self) -> list[Outputs]:
        detector = Detector(self._recording.model)
        with torch.no_grad():
            return [detector(image) for image in self._recording.images]

    def export(
        self, format: str, file: str | Path, tolerance: Tolerance | None = None
    ) -> list[Comparison]:
        """Write one file.

        Args:
            format: a key of ``FORMATS``.
            file: where to write, with the suffix of the format; appears when everything has been
                checked. OpenVINO keeps the weights in a second file beside it, of the suffix .bin.
            tolerance: None: that of the format.

        Returns:
            A comparison for each image.

        Raises:
            GnwsError: the format does not support the model, the file cannot be written, or it
                detects something else.
        """
        chosen, file = FORMATS[format], Path(file)
        if file.suffix != Path(chosen.file).suffix:
            raise GnwsError(f"{file} is not a name for {format}. Name it like {chosen.file}.")
        if reason := chosen.refuse(self._recording.model):
            raise GnwsError(f"{format} does not support this model: {reason}.")
        expected = self._expected
        with _write_errors(file), TemporaryDirectory(prefix=".export.", dir=file.parent) as folder:
            written = Path(folder) / file.name
            chosen.write(self._recording, written)
            run = load_exported(written).run
            with torch.no_grad():
                found = [run(image) for image in self._recording.images]
            results = _compare_all(format, expected, found, tolerance or chosen.tolerance)
            _publish(written, file)
        return results


def export(
    model: nn.Module,
    format: str,
    file: str | Path,
    images: Sequence[torch.Tensor],
    facts: Mapping[str, object] | None = None,
    tolerance: Tolerance | None = None,
) -> list[Comparison]:
    """Write ``model`` in one format: see :class:`Exporter` and its ``export``."""
    return Exporter(model, images, facts).export(format, file, tolerance)


def _compare_all(
    format: str, expected: Sequence[Outputs], found: Sequence[Outputs], tolerance: Tolerance
) -> list[Comparison]:
    results = [compare(e, f, tolerance) for e, f in zip(expected, found, strict=True)]
    here = sum(result.expected for result in results)
    there = sum(result.found for result in results)
    same = sum(result.same for result in results)
    if same < tolerance.share * max(here, there):
        raise GnwsError(
            f"{format}: of {here} detections in {len(results)} images the file finds {same} within "
            f"{tolerance.difference:g}, and {there - same} others; {tolerance.share:.0%} have to "
            "be the same. It was not kept."
        )
    return results


def _publish(written: Path, file: Path) -> None:
    """Move ``written``, and the weights if they are beside it, to ``file``. At no time does it name
    the weights of another export."""
    weights = [part for part in written.parent.iterdir() if part != written]
    if weights:
        file.unlink(missing_ok=True)
    for part in (*weights, written):
        publish(part, file.with_name(part.name))


@contextmanager
def _write_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise GnwsError(
            f"{file.name} needs a package that does not import ({error}). Install it: {INSTALL}."
        ) from error
    except OSError as error:
        raise GnwsError(
            f"{file} cannot be written ({error}). Make room, or choose another folder."
        ) from error
