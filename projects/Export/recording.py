"""Recording a detector as a graph: what the formats of graphs share, made once for all of them."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .branch_free import BranchFreeDetector
from .interface import output_names


class Recording:
    """A detector that is to be written, and its graphs, each made when it is first asked for.

    Args:
        model: without standardized layers, see :func:`gnws_d2.layers.fold`.
        images: (3, H, W) each, as :class:`Detector` takes them; the first is recorded.
        facts: stored in every file, as JSON by name.
    """

    def __init__(
        self, model: nn.Module, images: Sequence[torch.Tensor], facts: Mapping[str, object]
    ) -> None:
        self.model, self.images, self.facts = model, images, facts

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph for images of any size."""
        detector = BranchFreeDetector(self.model)
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
                output_names=output_names(self.model),
                verbose=False,
            )
        assert program is not None  # what an older exporter returned
        _name_axes(program.model)
        for name, value in self.facts.items():
            program.model.metadata_props[name] = json.dumps(value)
        return program


def _name_axes(model: Any) -> None:
    """Call the axes of an ``onnx_ir.Model`` height, width and detections, not s62 and u9."""
    [image], boxes = model.graph.inputs, model.graph.outputs[0]
    recorded = (image.shape[1], image.shape[2], boxes.shape[0])
    names = zip(map(str, recorded), ("height", "width", "detections"), strict=True)
    patterns = [(re.compile(rf"\b{re.escape(symbol)}\b"), name) for symbol, name in names]
    computed = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (image, *computed):
        for axis, size in enumerate(value.shape or ()):
            text = getattr(size, "value", None)
            if not isinstance(text, str):  # a number, or unknown
                continue
            renamed = text
            for pattern, name in patterns:
                renamed = pattern.sub(name, renamed)  # also within an expression
            if renamed != text:
                value.shape[axis] = renamed


@contextmanager
def quiet():  # type: ignore[no-untyped-def]
    """Silence warnings about which a user can do nothing: Detectron2's asserts need not be
    recorded."""
    torch_logger = logging.getLogger("torch")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch_logger.setLevel(level)
