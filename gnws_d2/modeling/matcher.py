"""The matcher of MMDetection's ``MaxIoUAssigner``, as a rule over Detectron2's own."""

import torch
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

    ends_in_truth = False  # the last candidates are the ground truth, and each matches itself

    def __init__(
        self, thresholds: list[float], labels: list[int], low_quality_iou: float | None = None
    ) -> None:
        """``low_quality_iou`` is the minimum (``min_pos_iou``); None for no low-quality matches."""
        super().__init__(thresholds, labels, allow_low_quality_matches=False)
        self.low_quality_iou = low_quality_iou

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (M, N), the IoU of M ground-truth boxes and N candidates: (N,) indices of the matched
        ground truth, and (N,) labels, 1 positive, 0 negative, -1 ignored."""
        own = len(match_quality_matrix) if self.ends_in_truth else 0
        iou = match_quality_matrix[:, : match_quality_matrix.shape[1] - own]
        matches, labels = super().__call__(iou)
        if self.low_quality_iou is not None and iou.numel():
            best = iou.amax(1, keepdim=True)
            best = best.masked_fill(best < self.low_quality_iou, torch.inf)  # which none has
            # Not by the places of the matches: a GPU would have to be waited for.
            number = torch.arange(0.0, len(iou), device=iou.device)[:, None]
            last = torch.where(iou == best, number, -1.0).amax(0)
            found = last >= 0
            matches = torch.where(found, last.to(matches), matches)
            labels = labels.masked_fill(found, 1)
        truth = torch.arange(own, device=matches.device)
        return torch.cat([matches, truth]), torch.cat([labels, labels.new_ones(own)])
