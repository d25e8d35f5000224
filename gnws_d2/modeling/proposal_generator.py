"""A region proposal network whose anchors are assigned and sampled as MMDetection does it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.memory import retry_if_cuda_oom

from .matcher import MaxIoUMatcher


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaxIoURPN(RPN):
    """``detectron2.modeling.proposal_generator.RPN`` with the targets of MMDetection's ``RPNHead``.

    - Low-quality matches need an IoU of 0.3; see :class:`~.matcher.MaxIoUMatcher`.
    - Anchors on the padding of an image that is smaller than its batch are neither matched nor
      sampled. Detectron2 samples them as background.
    - Losses are divided by the number of sampled anchors, of which an image counts at least one
      positive and one negative. Detectron2 divides by the number it asks for: an image without a
      positive anchor has 256 there, and 257 here.

    Layers, parameter names, proposals and inference are those of ``RPN``. Source: ``AnchorHead``,
    ``RandomSampler`` and ``SamplingResult`` of MMDetection 3.3.0, with the values of its
    ``configs/_base_/models/faster-rcnn_r50_fpn.py``.
    """

    @configurable
    def __init__(self, *, size_divisibility: int = 32, **kwargs: Any) -> None:
        """
        Args:
            size_divisibility: in pixels. An image's own size is rounded up to a multiple of it;
                what lies beyond is padding.
            kwargs: see ``RPN``.
        """
        super().__init__(**kwargs)
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        rpn = cfg.MODEL.RPN
        matcher = MaxIoUMatcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, low_quality_iou=0.3)
        return {**super().from_config(cfg, input_shape), "anchor_matcher": matcher}

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """See ``RPN.label_and_sample_anchors``."""
        boxes = Boxes.cat(anchors)
        centers = boxes.get_centers()
        labels, matched_boxes = [], []
        for instances in gt_instances:
            size, gt_boxes = instances.image_size, instances.gt_boxes
            candidate = self._on_image(centers, size)
            if self.anchor_boundary_thresh >= 0:
                candidate &= boxes.inside_box(size, self.anchor_boundary_thresh)
            # Only the candidates are matched: an anchor on the padding is no one's best.
            quality = retry_if_cuda_oom(pairwise_iou)(gt_boxes, boxes[candidate])
            matches, found = retry_if_cuda_oom(self.anchor_matcher)(quality)
            label = found.new_full(candidate.shape, -1, device=candidate.device)
            label[candidate] = found.to(label.device)
            labels.append(self._subsample_labels(label))
            matched = torch.zeros_like(boxes.tensor)  # unused where there is no ground truth
            if len(instances):
                matched[candidate] = gt_boxes.tensor[matches.to(label.device)]
            matched_boxes.append(matched)
        return labels, matched_boxes

    def _on_image(self, centers: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """(N,) which of the (N, 2) centers lie on the image, rounded up to its divisibility."""
        height, width = (
            -(-side // self.size_divisibility) * self.size_divisibility for side in image_size
        )
        # The first center on the padding lies on its edge: half a pixel, so that rounding does
        # not decide.
        return (centers < centers.new_tensor([width - 0.5, height - 0.5])).all(1)

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
        sampled = sum(
            (label == kind).sum().clamp(min=1) for label in gt_labels for kind in (0, 1)
        )
        scale = self.batch_size_per_image * len(gt_labels) / sampled
        return {name: loss * scale for name, loss in losses.items()}
