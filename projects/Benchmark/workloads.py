"""What is run: the same input, boxes and random numbers for every variant.

A detector's work depends on what it finds. So proposals and detections are given: those of the
model are computed, as ever, and then replaced by these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn
from variants import load_config

STRIDE = 32  # of Detectron2's padding


@dataclass(frozen=True)
class Case:
    """One comparison of all variants."""

    level: str  # "kernel", "backbone" or "model"
    model: str
    size: tuple[int, int]  # height and width before padding
    batch: int
    mode: str  # "train" or "infer"
    precision: str = "fp32"  # or "tf32", "bf16" (autocast)
    memory_format: str = "nchw"  # or "channels_last"
    device: str = "cpu"

    def autocast(self) -> AbstractContextManager:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    @property
    def format(self) -> torch.memory_format:
        last = self.memory_format == "channels_last"
        return torch.channels_last if last else torch.contiguous_format


class BackboneWorkload:
    """Backbone and FPN of a model on padded pictures; in training with given output gradients."""

    def __init__(self, case: Case) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(case.batch, 3, *case.size, generator=generator)
        x = F.pad(x, (0, -case.size[1] % STRIDE, 0, -case.size[0] % STRIDE))
        self.x = x.to(case.device).contiguous(memory_format=case.format)
        self._gradients: dict[Any, torch.Tensor] = {}

    def step(self, model: GeneralizedRCNN) -> Callable[[], dict[str, torch.Tensor]]:
        """A function that runs ``model`` once and gives its outputs; gradients are in the model."""
        backbone = model.backbone
        x = self.x.to(next(backbone.parameters()).dtype)

        def train() -> dict[str, torch.Tensor]:
            model.zero_grad(set_to_none=True)
            with self.case.autocast():
                features = backbone(x)
            torch.autograd.backward(
                list(features.values()), [self._gradient(*item) for item in features.items()]
            )
            return features

        @torch.inference_mode()
        def infer() -> dict[str, torch.Tensor]:
            with self.case.autocast():
                return backbone(x)

        return train if self.case.mode == "train" else infer

    def _gradient(self, name: str, feature: torch.Tensor) -> torch.Tensor:
        key = name, feature.dtype
        if key not in self._gradients:
            generator = torch.Generator().manual_seed(1)
            gradient = torch.randn(feature.shape, generator=generator)
            self._gradients[key] = gradient.to(feature).contiguous(memory_format=self.case.format)
        return self._gradients[key]


class ModelWorkload:
    """A whole detector on pictures with objects: a training step with losses, backward and SGD, or
    inference from pictures to pasted masks."""

    def __init__(self, case: Case, proposals: int = 1000) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        cfg = load_config(case.model, [], case.device)
        self.batch, self.proposals, self.detections = [], [], []
        for _ in range(case.batch):
            truth = objects(case.size, 8, cfg.MODEL.ROI_HEADS.NUM_CLASSES, generator)
            image = torch.randint(0, 256, (3, *case.size), generator=generator, dtype=torch.uint8)
            height, width = case.size
            self.batch.append(
                {"image": image, "instances": truth, "height": height, "width": width}
            )
            boxes = propose(truth, proposals, generator)
            self.proposals.append(boxes.to(case.device))
            self.detections.append(detect(boxes[:100], truth, generator).to(case.device))
        self.seen: dict[str, Any] = {}

    def step(self, model: GeneralizedRCNN) -> Callable[[], dict[str, Any]]:
        """A function that runs ``model`` once and gives losses, or detections; gradients are in the
        model."""
        self.fix(model)
        cfg = load_config(self.case.model, [], self.case.device)
        optimizer = build_optimizer(cfg, model) if self.case.mode == "train" else None

        def train() -> dict[str, Any]:
            assert optimizer is not None
            optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(0)  # which anchors and proposals are sampled
            with EventStorage(), self.case.autocast():
                losses = model(self.batch)
                total = sum(losses.values())
            total.backward()
            optimizer.step()
            return losses

        @torch.inference_mode()
        def infer() -> dict[str, Any]:
            with self.case.autocast():
                found = model(self.batch)
            return dict(enumerate(found))

        return train if optimizer else infer

    def fix(self, model: GeneralizedRCNN) -> None:
        """Give ``model`` the proposals and detections; what it predicted itself is in ``seen``."""
        rpn, predictor = model.proposal_generator, model.roi_heads.box_predictor

        def predict_proposals(anchors: Any, logits: Any, deltas: Any, sizes: Any) -> Any:
            self.seen["rpn"] = [*logits, *deltas]
            type(rpn).predict_proposals(rpn, anchors, _single(logits), _single(deltas), sizes)
            return self.proposals

        def inference(predictions: Any, proposals: Any) -> Any:
            self.seen["box"] = list(predictions)
            _, kept = type(predictor).inference(predictor, _single(predictions), proposals)
            return [Instances(d.image_size, **d.get_fields()) for d in self.detections], kept

        rpn.predict_proposals = predict_proposals
        predictor.inference = inference


def _single(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Those of a float64 model in float32, which is what non-maximum suppression takes."""
    return [t.float() if t.dtype == torch.float64 else t for t in tensors]


def objects(
    size: tuple[int, int], count: int, classes: int, generator: torch.Generator
) -> Instances:
    """Ground truth: objects of 5% to 70% of the picture's height, with masks of 8 corners."""
    height, width = size
    lengths = height * torch.exp(torch.empty(count, 2).uniform_(-3.0, -0.35, generator=generator))
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    boxes = Boxes(torch.cat([centers - lengths / 2, centers + lengths / 2], 1))
    boxes.clip(size)
    angles = torch.arange(8) * torch.pi / 4 + 0.3
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    corners, spans = boxes.tensor[:, :2], boxes.tensor[:, 2:] - boxes.tensor[:, :2]
    polygons = corners[:, None] + spans[:, None] * (circle + 1) / 2
    return Instances(
        size,
        gt_boxes=boxes,
        gt_classes=torch.randint(classes, (count,), generator=generator),
        gt_masks=PolygonMasks([[p.flatten().double().numpy()] for p in polygons]),
    )


def propose(truth: Instances, count: int, generator: torch.Generator) -> Instances:
    """Proposals, every second one around an object."""
    spread = torch.rand(count, 1, generator=generator) * 0.5
    spread[::2] = 2.0
    near = truth.gt_boxes.tensor[torch.randint(len(truth), (count,), generator=generator)]
    spans = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    boxes = near + spread * spans * (torch.rand(count, 4, generator=generator) - 0.5)
    boxes = torch.cat(
        [boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:]) + 8], 1
    )
    clipped = Boxes(boxes)
    clipped.clip(truth.image_size)
    logits = torch.randn(count, generator=generator).sort(descending=True).values
    return Instances(truth.image_size, proposal_boxes=clipped, objectness_logits=logits)


def detect(proposals: Instances, truth: Instances, generator: torch.Generator) -> Instances:
    """Detections where the proposals are."""
    which = torch.randint(len(truth), (len(proposals),), generator=generator)
    return Instances(
        proposals.image_size,
        pred_boxes=proposals.proposal_boxes,
        scores=torch.rand(len(proposals), generator=generator).sort(descending=True).values,
        pred_classes=truth.gt_classes[which],
    )


def workload(case: Case) -> BackboneWorkload | ModelWorkload:
    return ModelWorkload(case) if case.level == "model" else BackboneWorkload(case)


def convolutions(model: nn.Module) -> dict[str, Any]:
    """Detectron2's convolutions that have a norm, standardized or not, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and getattr(module, "norm", None) is not None
    }
