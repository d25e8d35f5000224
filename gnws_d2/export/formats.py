"""The formats a detector can be exported to: what each supports, and writing it."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.export import scripting_with_instances
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes
from torch import nn

from ..modeling.deform_conv import DEFORM_CONVS
from .branch_free import BranchFreeDetector
from .compare import EXACT, ROUNDED, Tolerance
from .interface import Detector, output_names
from .runtime import FACTS, import_openvino

Images = Sequence[torch.Tensor]  # (3, H, W) each; the first is recorded


@dataclass(frozen=True)
class Format:
    """A format: the name of its file, how to write it, and what it refuses."""

    file: str
    write: Callable[[nn.Module, Images, Path, Mapping[str, object]], None]
    refuse: Callable[[nn.Module], str]
    """Why a model is not supported; empty if it is."""
    tolerance: Tolerance = EXACT


def _write_trace(model: nn.Module, images: Images, file: Path, facts: Mapping[str, object]) -> None:
    with _quiet(), torch.no_grad(), patch_builtin_len():
        traced = torch.jit.trace(Detector(model), (images[0],), check_trace=False)
        extra = {FACTS: json.dumps(facts)}
        _write(file, lambda stream: torch.jit.save(traced, stream, _extra_files=extra))


def _write(file: Path, save: Callable[[IO[bytes]], None]) -> None:
    """Through Python: torch's own writer ends the process where the disk is full."""
    buffer = io.BytesIO()
    save(buffer)
    file.write_bytes(buffer.getbuffer())


class _Scriptable(nn.Module):
    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        instances = self.model.inference([{"image": image}], None, False)[0]
        return list(instances.get_fields().values())


def _write_script(
    model: nn.Module, images: Images, file: Path, facts: Mapping[str, object]
) -> None:
    tensor = torch.Tensor
    fields = {"proposal_boxes": Boxes, "objectness_logits": tensor, "pred_boxes": Boxes}
    fields |= {"scores": tensor, "pred_classes": tensor, "pred_masks": tensor}
    with _quiet():
        scripted = scripting_with_instances(_Scriptable(model).eval(), fields)
        extra = {FACTS: json.dumps(facts)}
        _write(file, lambda stream: torch.jit.save(scripted, stream, _extra_files=extra))


def _record(model: nn.Module, image: torch.Tensor) -> torch.export.ExportedProgram:
    detector = BranchFreeDetector(model)
    side = {name: torch.export.Dim(name, min=detector.smallest) for name in ("height", "width")}
    with _quiet(), torch.no_grad():
        return torch.export.export(
            detector,
            (image,),
            dynamic_shapes={"image": {1: side["height"], 2: side["width"]}},
            # What cannot be proved of all sizes is checked when the program runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _write_export(
    model: nn.Module, images: Images, file: Path, facts: Mapping[str, object]
) -> None:
    recorded = _record(model, images[0])
    extra = {FACTS: json.dumps(facts)}
    _write(file, lambda stream: torch.export.save(recorded, stream, extra_files=extra))


def _write_onnx(model: nn.Module, images: Images, file: Path, facts: Mapping[str, object]) -> None:
    with _quiet():
        program = torch.onnx.export(
            _record(model, images[0]),
            dynamo=True,
            input_names=["image"],
            output_names=output_names(model),
            verbose=False,
        )
    assert program is not None  # what an older exporter returned
    _name_axes(program.model)
    for name, value in facts.items():
        program.model.metadata_props[name] = json.dumps(value)
    program.save(str(file))


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


def _write_openvino(
    precision: str, model: nn.Module, images: Images, file: Path, facts: Mapping[str, object]
) -> None:
    openvino = import_openvino()
    graph = file.with_suffix(".onnx")
    _write_onnx(model, images, graph, {})
    converted = openvino.convert_model(graph)
    if precision == "int8":
        converted, precision = _quantize(converted, images), "f32"  # of all other operations
    converted.set_rt_info(json.dumps({**facts, "precision": precision}), ["gnws_d2", "facts"])
    try:
        openvino.save_model(converted, file, compress_to_fp16=False)
    except RuntimeError as error:  # of its streams, where the disk is full
        raise OSError(str(error)) from error
    graph.unlink()


def _quantize(model: Any, images: Images) -> Any:
    """Convolutions and fully connected layers in 8-bit integers. Left to itself, NNCF also
    quantizes normalizations, and the coordinates of boxes."""
    quantized = {"Convolution", "ConvolutionBackpropData", "MatMul"}
    others = {operation.get_type_name() for operation in model.get_ops()} - quantized
    with _quiet():
        import nncf

        nncf.set_log_level(logging.WARNING)
        return nncf.quantize(
            model,
            nncf.Dataset([{"image": image.numpy()} for image in images]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(types=sorted(others), validate=False),
        )


def _refuse_deformable(model: nn.Module) -> str:
    deformable = any(isinstance(m, DEFORM_CONVS) for m in model.modules())
    return "Detectron2's deformable convolution is a Python function" if deformable else ""


def _refuse_all_but_rcnn(model: nn.Module) -> str:
    """Faster and Mask R-CNN as Detectron2 builds them are supported."""
    known = {GeneralizedRCNN, RPN, StandardROIHeads, MaskRCNNConvUpsampleHead}
    heads: Any = getattr(model, "roi_heads", None)
    parts = [model, getattr(model, "proposal_generator", None), heads]
    parts += [heads.mask_head] if getattr(heads, "mask_on", False) else []
    other = [type(part).__name__ for part in parts if type(part) not in known]
    other += ["keypoints"] if getattr(heads, "keypoint_on", False) else []
    if other:
        return f"only Faster and Mask R-CNN are supported; this model has {other[0]}"
    return _refuse_deformable(model)


FORMATS = {
    "torchscript-trace": Format("model_trace.ts", _write_trace, _refuse_deformable),
    "torchscript-script": Format("model_script.ts", _write_script, _refuse_all_but_rcnn),
    "torch-export": Format("model.pt2", _write_export, _refuse_all_but_rcnn),
    "onnx": Format("model.onnx", _write_onnx, _refuse_all_but_rcnn),
    "openvino": Format("model.xml", partial(_write_openvino, "f32"), _refuse_all_but_rcnn),
    "openvino-bfloat16": Format(
        "model_bfloat16.xml", partial(_write_openvino, "bf16"), _refuse_all_but_rcnn, ROUNDED
    ),
    "openvino-int8": Format(
        "model_int8.xml", partial(_write_openvino, "int8"), _refuse_all_but_rcnn, ROUNDED
    ),
}


@contextmanager
def _quiet():  # type: ignore[no-untyped-def]
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
