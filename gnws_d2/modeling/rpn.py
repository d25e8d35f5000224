"""A region proposal network that assigns and samples anchors as MMDetection does."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.memory import retry_if_cuda_oom

from .matcher import MaxIoUMatcher


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaxIoURPN(RPN):
    """``detectron2.modeling.proposal_generator.RPN`` with the targets of MMDetection's ``RPNHead``.

    - Low-quality matches need an IoU of 0.3; see :class:`~.matcher.MaxIoUMatcher`.
    - Anchors on the padding of an image that is smaller than its batch are neither matched nor
      sampled. Detectron2 samples them as background.
    - Losses are divided by the number of sampled anchors; each image counts at least one positive
      and one negative. Detectron2 divides by the number it asks for: 256 for an image without a
      positive anchor, which counts 257 here.

    Layers, parameter names, proposals and inference are those of ``RPN``. Source: ``AnchorHead``,
    ``RandomSampler`` and ``SamplingResult`` of MMDetection 3.3.0, with the values of its
    ``configs/_base_/models/faster-rcnn_r50_fpn.py``.
    """

    plain_class = RPN  # which it is at inference

    @configurable
    def __init__(self, *, size_divisibility: int = 32, **kwargs: Any) -> None:
        """Everything beyond an image's size, rounded up to a multiple of ``size_divisibility``
        pixels, is padding."""
        super().__init__(**kwargs)
        self.size_divisibility = size_divisibility
        self._padded_size: Sequence[float] = (torch.inf, torch.inf)  # height, width of the batch

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        rpn = cfg.MODEL.RPN
        matcher = MaxIoUMatcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, low_quality_iou=0.3)
        return {**super().from_config(cfg, input_shape), "anchor_matcher": matcher}

    def forward(
        self, images: ImageList, features: dict[str, torch.Tensor], gt_instances: Any = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See ``RPN.forward``."""
        self._padded_size = images.tensor.shape[-2:]
        return super().forward(images, features, gt_instances)

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """See ``RPN.label_and_sample_anchors``."""
        boxes = Boxes.cat(anchors)
        labels, matched_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            left_out = self._left_out(boxes, instances.image_size)
            quality = retry_if_cuda_oom(pairwise_iou)(gt_boxes, boxes)
            # Anchors that are left out are not matched at all, not even as an object's best.
            if left_out is not None:
                quality = quality.masked_fill(left_out.to(quality.device), 0)
            # The result may be on the CPU, if the GPU ran out of memory.
            found = retry_if_cuda_oom(self.anchor_matcher)(quality)
            matches, label = (tensor.to(boxes.device) for tensor in found)
            if left_out is not None:
                label = label.masked_fill(left_out, -1)
            labels.append(self._subsample_labels(label))
            if len(gt_boxes):
                matched_boxes.append(gt_boxes.tensor[matches])
            else:  # nothing is positive, so the matched boxes are not used
                matched_boxes.append(torch.zeros_like(boxes.tensor))
        return labels, matched_boxes

    def _left_out(self, boxes: Boxes, image_size: tuple[int, int]) -> torch.Tensor | None:
        """Which anchors are on the padding, or cross a boundary that
        ``MODEL.RPN.BOUNDARY_THRESH`` forbids; None for none."""
        sides = [-(-side // self.size_divisibility) * self.size_divisibility for side in image_size]
        padded = any(whole > side for whole, side in zip(self._padded_size, sides, strict=True))
        if self.anchor_boundary_thresh < 0 and not padded:  # known without asking a GPU
            return None
        x, y = boxes.get_centers().unbind(1)
        # The first center on the padding lies on its edge; half a pixel guards against rounding.
        left_out = (x > sides[1] - 0.5) | (y > sides[0] - 0.5)
        if self.anchor_boundary_thresh >= 0:
            left_out |= ~boxes.inside_box(image_size, self.anchor_boundary_thresh)
        return left_out

    @torch.jit.unused
    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """See ``RPN.losses``."""
        losses = super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        # Labels are -1, 0 or 1. Comparing them with numbers takes five times as long on a CPU.
        positive = torch.stack([label.clamp(min=0).sum() for label in gt_labels])
        negative = torch.stack([(label + 1).count_nonzero() for label in gt_labels]) - positive
        sampled = (positive.clamp(min=1) + negative.clamp(min=1)).sum()
        wanted = self.batch_size_per_image * len(gt_labels)
        return {name: loss * (wanted / sampled.to(loss)) for name, loss in losses.items()}
