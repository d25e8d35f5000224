"""The formats a detector can be exported to: what each supports, and writing it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from detectron2.export import scripting_with_instances
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes
from torch import nn

from gnws.upstream import quiet
from gnws_d2.modeling.deform_conv import DEFORM_CONVS

from .compare import EXACT, REORDERED, ROUNDED, Tolerance
from .interface import Detector
from .runtime import FACTS, import_openvino

if TYPE_CHECKING:
    from .exporter import Exporter


def _write_trace(exporter: Exporter, file: Path) -> None:
    # torch warns that Detectron2's asserts are not recorded, which they need not be.
    with quiet(), torch.no_grad(), patch_builtin_len():
        traced = torch.jit.trace(Detector(exporter.model), exporter.images[0], check_trace=False)
        _write(exporter, file, lambda out, facts: torch.jit.save(traced, out, _extra_files=facts))


class _Scriptable(nn.Module):
    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        instances = self.model.inference([{"image": image}], None, False)[0]
        return list(instances.get_fields().values())


def _write_script(exporter: Exporter, file: Path) -> None:
    tensor = torch.Tensor
    fields = {"proposal_boxes": Boxes, "objectness_logits": tensor, "pred_boxes": Boxes}
    fields |= {"scores": tensor, "pred_classes": tensor, "pred_masks": tensor}
    for norm in exporter.model.modules():
        if isinstance(norm, nn.SyncBatchNorm | NaiveSyncBatchNorm):
            norm.__class__ = nn.BatchNorm2d  # as it is at inference; torch scripts no other
    with quiet():
        module = scripting_with_instances(_Scriptable(exporter.model).eval(), fields)
        _write(exporter, file, lambda out, facts: torch.jit.save(module, out, _extra_files=facts))


def _write_export(exporter: Exporter, file: Path) -> None:
    program = exporter.program
    _write(exporter, file, lambda out, facts: torch.export.save(program, out, extra_files=facts))


def _write(exporter: Exporter, file: Path, save: Callable[[Any, dict[str, str]], None]) -> None:
    """Through Python: torch's own writer ends the process where the disk is full."""
    buffer = io.BytesIO()
    save(buffer, {FACTS: json.dumps(exporter.facts)})
    file.write_bytes(buffer.getbuffer())


def _write_openvino(precision: str, exporter: Exporter, file: Path) -> None:
    openvino = import_openvino()
    graph = file.with_suffix(".onnx")
    exporter.onnx.save(str(graph))
    converted = openvino.convert_model(graph)
    if precision == "int8":
        converted, precision = _quantize(converted, exporter.images), "f32"  # of all others
    facts = {**exporter.facts, "precision": precision}
    converted.set_rt_info(json.dumps(facts), ["gnws_d2", "facts"])
    try:
        openvino.save_model(converted, file, compress_to_fp16=False)
    except RuntimeError as error:  # of its streams, where the disk is full
        raise OSError(str(error)) from error
    graph.unlink()


def _quantize(model: Any, images: Sequence[torch.Tensor]) -> Any:
    """Convolutions and fully connected layers in 8-bit integers. By default, NNCF also quantizes
    normalizations, and the coordinates of boxes."""
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


def _refuse_some(model: nn.Module) -> str:
    if isinstance(model, PanopticFPN):
        return (
            "a panoptic model returns a list of segments beside its tensors; export its parts, "
            "with MODEL.META_ARCHITECTURE GeneralizedRCNN or SemanticSegmentor"
        )
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
    return _refuse_some(model)


@dataclass(frozen=True)
class Format:
    """A format: the name of its file, how to write it, and what it refuses."""

    file: str
    write: Callable[[Exporter, Path], None]
    tolerance: Tolerance = EXACT
    refuse: Callable[[nn.Module], str] = _refuse_all_but_rcnn
    """Why a model is not supported; empty if it is."""


FORMATS = {
    "torchscript-trace": Format("model_trace.ts", _write_trace, refuse=_refuse_some),
    "torchscript-script": Format("model_script.ts", _write_script),
    "torch-export": Format("model.pt2", _write_export),
    "onnx": Format("model.onnx", lambda exporter, file: exporter.onnx.save(str(file)), REORDERED),
    "openvino": Format("model.xml", partial(_write_openvino, "f32"), REORDERED),
    "openvino-bfloat16": Format("model_bfloat16.xml", partial(_write_openvino, "bf16"), ROUNDED),
    "openvino-int8": Format("model_int8.xml", partial(_write_openvino, "int8"), ROUNDED),
}
