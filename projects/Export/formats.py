"""The formats a detector can be exported to: what each supports, and writing it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Sequence
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

from gnws_d2.modeling.deform_conv import DEFORM_CONVS

from .compare import EXACT, REORDERED, ROUNDED, Tolerance
from .interface import Detector
from .recording import Recording, quiet
from .runtime import FACTS, import_openvino


@dataclass(frozen=True)
class Format:
    """A format: the name of its file, how to write it, and what it refuses."""

    file: str
    write: Callable[[Recording, Path], None]
    refuse: Callable[[nn.Module], str]
    """Why a model is not supported; empty if it is."""
    tolerance: Tolerance = EXACT


def _write_trace(recording: Recording, file: Path) -> None:
    with quiet(), torch.no_grad(), patch_builtin_len():
        image = recording.images[0]
        traced = torch.jit.trace(Detector(recording.model), (image,), check_trace=False)
        extra = {FACTS: json.dumps(recording.facts)}
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


def _write_script(recording: Recording, file: Path) -> None:
    tensor = torch.Tensor
    fields = {"proposal_boxes": Boxes, "objectness_logits": tensor, "pred_boxes": Boxes}
    fields |= {"scores": tensor, "pred_classes": tensor, "pred_masks": tensor}
    with quiet():
        scripted = scripting_with_instances(_Scriptable(recording.model).eval(), fields)
        extra = {FACTS: json.dumps(recording.facts)}
        _write(file, lambda stream: torch.jit.save(scripted, stream, _extra_files=extra))


def _write_export(recording: Recording, file: Path) -> None:
    extra = {FACTS: json.dumps(recording.facts)}
    _write(file, lambda stream: torch.export.save(recording.program, stream, extra_files=extra))


def _write_onnx(recording: Recording, file: Path) -> None:
    recording.onnx.save(str(file))


def _write_openvino(precision: str, recording: Recording, file: Path) -> None:
    openvino = import_openvino()
    graph = file.with_suffix(".onnx")
    recording.onnx.save(str(graph))
    converted = openvino.convert_model(graph)
    if precision == "int8":
        converted, precision = _quantize(converted, recording.images), "f32"  # of all others
    facts = {**recording.facts, "precision": precision}
    converted.set_rt_info(json.dumps(facts), ["gnws_d2", "facts"])
    try:
        openvino.save_model(converted, file, compress_to_fp16=False)
    except RuntimeError as error:  # of its streams, where the disk is full
        raise OSError(str(error)) from error
    graph.unlink()


def _quantize(model: Any, images: Sequence[torch.Tensor]) -> Any:
    """Convolutions and fully connected layers in 8-bit integers. Left to itself, NNCF also
    quantizes normalizations, and the coordinates of boxes."""
    quantized = {"Convolution", "ConvolutionBackpropData", "MatMul"}
    others = {operation.get_type_name() for operation in model.get_ops()} - quantized
    with quiet():
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
    "onnx": Format("model.onnx", _write_onnx, _refuse_all_but_rcnn, REORDERED),
    "openvino": Format(
        "model.xml", partial(_write_openvino, "f32"), _refuse_all_but_rcnn, REORDERED
    ),
    "openvino-bfloat16": Format(
        "model_bfloat16.xml", partial(_write_openvino, "bf16"), _refuse_all_but_rcnn, ROUNDED
    ),
    "openvino-int8": Format(
        "model_int8.xml", partial(_write_openvino, "int8"), _refuse_all_but_rcnn, ROUNDED
    ),
}
