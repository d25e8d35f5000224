"""What is run: the same input, boxes and random numbers for every variant.

A detector's work depends on what it finds, so proposals and detections are fixed: the model
computes its own, which are then replaced.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from variants import Case

STRIDE = 32  # of Detectron2's padding
OBJECTS, PROPOSALS, DETECTIONS = 8, 1000, 100


class BackboneWorkload:
    """Backbone and FPN on a padded random image; in training with fixed output gradients."""

    predicted: Mapping[str, list[torch.Tensor]] = {}  # nothing is replaced

    def __init__(self, case: Case) -> None:
        self.case = case
        x = torch.randn(1, 3, *case.size, generator=torch.Generator().manual_seed(0))
        self.x = F.pad(x, (0, -case.size[1] % STRIDE, 0, -case.size[0] % STRIDE)).to(case.device)
        self._gradients: dict[Any, torch.Tensor] = {}

    def step(self, model: GeneralizedRCNN) -> Callable[[], dict[str, torch.Tensor]]:
        """A function that runs ``model`` once and returns its outputs; gradients are in it."""
        x = self.x.to(next(model.backbone.parameters()).dtype)

        def run() -> dict[str, torch.Tensor]:
            model.zero_grad(set_to_none=True)
            with torch.inference_mode(not self.case.training), self.case.autocast():
                features = model.backbone(x)
            if self.case.training:
                gradients = [self._gradient(*item) for item in features.items()]
                torch.autograd.backward(list(features.values()), gradients)
            return features

        return run

    def _gradient(self, name: str, feature: torch.Tensor) -> torch.Tensor:
        key = name, feature.dtype
        if key not in self._gradients:
            gradient = torch.randn(feature.shape, generator=torch.Generator().manual_seed(1))
            self._gradients[key] = torch.empty_like(feature).copy_(gradient)
        return self._gradients[key]


class ModelWorkload:
    """A whole detector on an image with objects: a training step with losses, backward and SGD, or
    inference from the image to pasted masks."""

    def __init__(self, case: Case, proposals: int | None = None) -> None:
        self.case, self.cfg = case, case.config()
        generator = torch.Generator().manual_seed(0)
        truth = objects(case.size, self.cfg.MODEL.ROI_HEADS.NUM_CLASSES, generator)
        image = torch.randint(0, 256, (3, *case.size), generator=generator, dtype=torch.uint8)
        size = {"height": case.size[0], "width": case.size[1]}
        self.batch = [{"image": image, "instances": truth, **size}]
        found = propose(truth, proposals or PROPOSALS, generator)
        self.proposals = [found.to(case.device)]
        boxes = found[:DETECTIONS].proposal_boxes
        which = torch.randint(len(truth), (len(boxes),), generator=generator)
        scores = torch.rand(len(boxes), generator=generator).sort(descending=True).values
        fields = {"pred_boxes": boxes, "scores": scores, "pred_classes": truth.gt_classes[which]}
        self.detections = [Instances(case.size, **fields).to(case.device)]
        self.predicted: dict[str, list[torch.Tensor]] = {}  # by the model, then replaced

    def step(self, model: GeneralizedRCNN) -> Callable[[], dict[str, Any]]:
        """A function that runs ``model`` once and returns its losses, or its detections by image;
        gradients are in the model."""
        self.fix(model)
        optimizer = build_optimizer(self.cfg, model) if self.case.training else None

        def run() -> dict[str, Any]:
            model.zero_grad(set_to_none=True)
            torch.manual_seed(0)  # which anchors and proposals are sampled
            with torch.inference_mode(optimizer is None), EventStorage(), self.case.autocast():
                found = model(self.batch)
                if optimizer is None:
                    return dict(enumerate(found))
                total = sum(found.values())
            total.backward()
            optimizer.step()
            return found

        return run

    def fix(self, model: GeneralizedRCNN) -> None:
        """Replace the proposals and detections of ``model``, and see what it predicts."""
        rpn, predictor = model.proposal_generator, model.roi_heads.box_predictor

        def predict_proposals(anchors: Any, logits: Any, deltas: Any, sizes: Any) -> Any:
            self.predicted["rpn"] = [*logits, *deltas]
            type(rpn).predict_proposals(rpn, anchors, _single(logits), _single(deltas), sizes)
            return self.proposals

        def inference(predictions: Any, proposals: Any) -> Any:
            self.predicted["box"] = list(predictions)
            _, kept = type(predictor).inference(predictor, _single(predictions), proposals)
            return [Instances(d.image_size, **d.get_fields()) for d in self.detections], kept

        rpn.predict_proposals = predict_proposals
        predictor.inference = inference
        if self.cfg.MODEL.MASK_ON:
            masks = model.roi_heads.mask_head.predictor

            def predict_masks(x: torch.Tensor) -> torch.Tensor:
                self.predicted["mask"] = [type(masks).forward(masks, x)]
                return self.predicted["mask"][0]

            masks.forward = predict_masks


def workload(case: Case, proposals: int | None = None) -> BackboneWorkload | ModelWorkload:
    return ModelWorkload(case, proposals) if case.level == "model" else BackboneWorkload(case)


def objects(size: tuple[int, int], classes: int, generator: torch.Generator) -> Instances:
    """Ground truth: objects of 5% to 70% of the image's height, with diamonds as masks."""
    height, width = size
    lengths = torch.empty(OBJECTS, 2).uniform_(-3.0, -0.35, generator=generator).exp() * height
    centers = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width, height])
    boxes = Boxes(torch.cat([centers - lengths / 2, centers + lengths / 2], 1))
    boxes.clip(size)
    left, top, right, bottom = boxes.tensor.T
    x, y = boxes.get_centers().T
    diamonds = torch.stack([x, top, right, y, x, bottom, left, y], 1).double().numpy()
    return Instances(
        size,
        gt_boxes=boxes,
        gt_classes=torch.randint(classes, (OBJECTS,), generator=generator),
        gt_masks=PolygonMasks([[polygon] for polygon in diamonds]),
    )


def propose(truth: Instances, count: int, generator: torch.Generator) -> Instances:
    """Proposals, every second one close to an object."""
    spread = torch.rand(count, 1, generator=generator) * 0.5
    spread[::2] = 2.0
    near = truth.gt_boxes.tensor[torch.randint(len(truth), (count,), generator=generator)]
    spans = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    corners = near + spread * spans * (torch.rand(count, 4, generator=generator) - 0.5)
    first, second = corners[:, :2], corners[:, 2:]
    boxes = Boxes(torch.cat([first.minimum(second), first.maximum(second) + 8], 1))
    boxes.clip(truth.image_size)
    logits = torch.randn(count, generator=generator).sort(descending=True).values
    return Instances(truth.image_size, proposal_boxes=boxes, objectness_logits=logits)


def _single(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Those of a float64 model in float32, as non-maximum suppression needs them."""
    return [t.float() if t.dtype == torch.float64 else t for t in tensors]
