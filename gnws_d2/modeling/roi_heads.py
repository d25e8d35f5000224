"""ROI heads that assign proposals to objects as MMDetection does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from .initialization import init_linear_layers, init_mask_predictor
from .matcher import MaxIoUMatcher


@ROI_HEADS_REGISTRY.register()
class MaxIoUROIHeads(StandardROIHeads):
    """``detectron2.modeling.roi_heads.StandardROIHeads`` with the targets of MMDetection's
    ``StandardRoIHead``.

    - Proposals are matched before the ground truth is added to them; a ground-truth box matches
      itself, even where two are the same.
    - With masks, low-quality matches from an IoU of 0.5 move a proposal to the object whose best
      it is; see :class:`~.matcher.MaxIoUMatcher`. Without masks there are none.
    - The linear layers of the box head and the mask predictor are initialized as in MMDetection;
      see :mod:`.initialization`.

    Heads, parameter names and inference are those of ``StandardROIHeads``. Source:
    ``BaseSampler.sample`` and the configs ``configs/_base_/models/{faster,mask}-rcnn_r50_fpn.py``
    of MMDetection 3.3.0.
    """

    plain_class = StandardROIHeads  # which they are at inference

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """
        Args:
            kwargs: see ``StandardROIHeads``; ``proposal_matcher`` is a ``MaxIoUMatcher`` for
                low-quality matches.
        """
        super().__init__(**kwargs)
        init_linear_layers(self.box_head)
        if self.mask_on:
            init_mask_predictor(self.mask_head)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        heads = cfg.MODEL.ROI_HEADS
        matcher = MaxIoUMatcher(
            heads.IOU_THRESHOLDS,
            heads.IOU_LABELS,
            low_quality_iou=0.5 if cfg.MODEL.MASK_ON else None,
        )
        return {**super().from_config(cfg, input_shape), "proposal_matcher": matcher}

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """See ``ROIHeads.label_and_sample_proposals``."""
        samples = [self._label_and_sample(p, t) for p, t in zip(proposals, targets, strict=True)]
        background = [int((s.gt_classes == self.num_classes).sum()) for s in samples]
        foreground = [len(s) - n for s, n in zip(samples, background, strict=True)]
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", np.mean(foreground))
        storage.put_scalar("roi_head/num_bg_samples", np.mean(background))
        return samples

    def _label_and_sample(self, proposals: Instances, targets: Instances) -> Instances:
        """The proposals of one image to train on, with the ``gt_*`` fields of their targets."""
        gt_boxes, classes = targets.gt_boxes, targets.gt_classes
        matches, labels = self.proposal_matcher(pairwise_iou(gt_boxes, proposals.proposal_boxes))
        # Matches and labels are fields, so that they stay with their boxes.
        candidates = Instances(proposals.image_size, **proposals.get_fields())
        candidates.set("matches", matches)
        candidates.set("labels", labels)
        if self.proposal_append_gt:
            own = {
                "gt_boxes": gt_boxes,
                "matches": torch.arange(len(targets), device=classes.device),
                "labels": labels.new_ones(len(targets)),
            }
            ground_truth = Instances(targets.image_size, **own)
            [candidates] = add_ground_truth_to_proposals([ground_truth], [candidates])
        chosen, gt_classes = self._sample_proposals(candidates.matches, candidates.labels, classes)
        sample = candidates[chosen]
        sample.gt_classes = gt_classes
        if len(targets):
            for name, value in targets.get_fields().items():
                if name.startswith("gt_") and name != "gt_classes":
                    sample.set(name, value[sample.matches])
        sample.remove("matches")
        sample.remove("labels")
        return sample
