"""The matcher of MMDetection's ``MaxIoUAssigner``, as a rule over Detectron2's own."""

from __future__ import annotations

import torch
from detectron2.layers import nonzero_tuple
from detectron2.modeling.matcher import Matcher


class MaxIoUMatcher(Matcher):
    """``detectron2.modeling.matcher.Matcher`` with low-quality matches that need a minimum IoU.

    After the thresholds, each ground-truth box takes the candidates that have its highest IoU, ties
    included, if that IoU reaches the minimum: they become positive and are matched to this box.
    Boxes take turns in their order, so a candidate that is best for two belongs to the later one.
    Detectron2's low-quality matches have no minimum and leave a candidate with the box that it
    overlaps most.

    Source: ``mmdet/models/task_modules/assigners/max_iou_assigner.py`` of MMDetection 3.3.0.
    """

    def __init__(
        self, thresholds: list[float], labels: list[int], low_quality_iou: float | None = None
    ) -> None:
        """
        Args:
            thresholds, labels: see ``Matcher``.
            low_quality_iou: the minimum IoU of a low-quality match (``min_pos_iou``); None for no
                low-quality matches.
        """
        super().__init__(thresholds, labels, allow_low_quality_matches=False)
        self.low_quality_iou = low_quality_iou

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            match_quality_matrix: (M, N) IoU of M ground-truth boxes and N candidates.

        Returns:
            (N,) indices of the matched ground truth, and (N,) labels: 1 positive, 0 negative, -1
            ignored.
        """
        matches, labels = super().__call__(match_quality_matrix)
        if self.low_quality_iou is not None and match_quality_matrix.numel():
            best = match_quality_matrix.amax(1, keepdim=True)
            best[best < self.low_quality_iou] = torch.inf  # which no candidate has
            boxes, candidates = nonzero_tuple(match_quality_matrix == best)
            # By the largest index, not by assignment, whose order is undefined on a GPU.
            matches.scatter_reduce_(0, candidates, boxes, "amax", include_self=False)
            labels[candidates] = 1
        return matches, labels
