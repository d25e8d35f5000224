"""Record a detector as a graph, write it in a format, and check the file before it is kept."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from gnws.upstream import quiet
from gnws_d2.errors import GnwsError
from gnws_d2.files import publish
from gnws_d2.layers import fold

from .branch_free import BranchFreeDetector
from .compare import Comparison, Tolerance, compare
from .formats import FORMATS
from .interface import Detector, Outputs, output_names
from .runtime import INSTALL, load_exported


class Exporter:
    """Writes a detector, its standardized weights stored in plain convolutions, to files that take
    images of any size, and compares what each file detects with what the model detects.

    Args:
        model: a Detectron2 model on the CPU; it stays as it is.
        images: (3, H, W) each, as :class:`Detector` takes them; the first is recorded, all give
            the ranges of 8-bit integers, and all are compared. Use at least two sizes.
        facts: stored in each file, as JSON by name, and with them the names of the ``outputs``.

    Attributes:
        model: the detector with plain convolutions, see :func:`gnws_d2.layers.fold`.
        program, onnx: its graphs, made when a format first needs them.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[torch.Tensor],
        facts: Mapping[str, object] | None = None,
    ) -> None:
        self.model, self.images = fold(model), images
        self.facts = {**(facts or {}), "outputs": output_names(self.model)}

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph for images of any size."""
        detector = BranchFreeDetector(self.model)
        if (shortest := min(min(image.shape[1:]) for image in self.images)) < detector.smallest:
            raise GnwsError(
                f"an image has a side of {shortest} pixels in the model; this needs at least "
                f"{detector.smallest}. Raise INPUT.MIN_SIZE_TEST or choose another image."
            )
        side = {name: torch.export.Dim(name, min=detector.smallest) for name in ("height", "width")}
        with quiet(), torch.no_grad():
            return torch.export.export(
                detector,
                (self.images[0],),
                dynamic_shapes={"image": {1: side["height"], 2: side["width"]}},
                # What cannot be proved of all sizes is checked when the program runs.
                prefer_deferred_runtime_asserts_over_guards=True,
            )

    @cached_property
    def onnx(self) -> torch.onnx.ONNXProgram:
        """The same in operators of ONNX."""
        with quiet():
            program = torch.onnx.export(
                self.program,
                dynamo=True,
                input_names=["image"],
                output_names=self.facts["outputs"],
                verbose=False,
            )
        [image], boxes = program.model.graph.inputs, program.model.graph.outputs[0]
        axes = (*image.shape[1:], boxes.shape[0])
        program.rename_axes(dict(zip(axes, ("height", "width", "detections"), strict=True)))
        for name, value in self.facts.items():
            program.model.metadata_props[name] = json.dumps(value)
        return program

    @cached_property
    def _expected(self) -> list[Outputs]:
        detector = Detector(self.model)
        with torch.no_grad():
            return [detector(image) for image in self.images]

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
        if reason := chosen.refuse(self.model):
            raise GnwsError(f"{format} does not support this model: {reason}.")
        expected = self._expected
        try:
            with TemporaryDirectory(prefix=".export.", dir=file.parent) as folder:
                written = Path(folder) / file.name
                chosen.write(self, written)
                run = load_exported(written).run
                with torch.no_grad():
                    found = [run(image) for image in self.images]
                results = _compare_all(format, expected, found, tolerance or chosen.tolerance)
                _publish(written, file)
        except ImportError as error:
            raise GnwsError(
                f"{file.name} needs a package that does not import ({error}). Install it: "
                f"{INSTALL}."
            ) from error
        except OSError as error:
            raise GnwsError(
                f"{file} cannot be written ({error}). Make room, or choose another folder."
            ) from error
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
    counts = ([r.expected, r.found, r.same] for r in results)
    here, there, same = map(sum, zip(*counts, strict=True))
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
