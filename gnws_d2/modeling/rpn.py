"""A region proposal network that assigns and samples anchors as MMDetection does."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, nonzero_tuple
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
        # The last anchor of a level is its rightmost and lowest.
        last = Boxes.cat([level[-1] for level in anchors]).get_centers().amax(0).tolist()
        labels, matched_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            kept = self._candidates(boxes, last, instances.image_size)
            # Anchors that are left out are not matched at all, not even as an object's best.
            candidates = boxes if kept is None else boxes[kept]
            quality = retry_if_cuda_oom(pairwise_iou)(gt_boxes, candidates)
            # The result may be on the CPU, if the GPU ran out of memory.
            found = retry_if_cuda_oom(self.anchor_matcher)(quality)
            matches, label = (tensor.to(boxes.device) for tensor in found)
            if kept is not None:
                matches = matches.new_zeros(len(boxes)).index_copy_(0, kept, matches)
                label = label.new_full((len(boxes),), -1).index_copy_(0, kept, label)
            labels.append(self._subsample_labels(label))
            if len(gt_boxes):
                matched_boxes.append(gt_boxes.tensor[matches])
            else:  # nothing is positive, so the matched boxes are not used
                matched_boxes.append(torch.zeros_like(boxes.tensor))
        return labels, matched_boxes

    def _candidates(
        self, boxes: Boxes, last: list[float], image_size: tuple[int, int]
    ) -> torch.Tensor | None:
        """The indices of the anchors that are not on the padding and do not cross a boundary that
        ``MODEL.RPN.BOUNDARY_THRESH`` forbids; None for all. ``last`` is the largest x and y of the
        anchors' centers."""
        height, width = (
            -(-side // self.size_divisibility) * self.size_divisibility for side in image_size
        )
        # The first center on the padding lies on its edge; half a pixel guards against rounding.
        right, bottom = width - 0.5, height - 0.5
        if self.anchor_boundary_thresh < 0 and last[0] < right and last[1] < bottom:
            return None
        x, y = boxes.get_centers().unbind(1)
        kept = (x < right) & (y < bottom)
        if self.anchor_boundary_thresh >= 0:
            kept &= boxes.inside_box(image_size, self.anchor_boundary_thresh)
        return nonzero_tuple(kept)[0]

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
