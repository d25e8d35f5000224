"""Numbers that objects keep over the frames of a video."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.tracking.bbox_iou_tracker import BBoxIOUTracker

OVERLAP = 0.3  # intersection over union of an object's boxes in two frames, at least
LOST = 15  # frames after which an object that is not detected gets a new number


class Tracks(BBoxIOUTracker):
    """Detectron2's tracker by the overlap of boxes with those of the last frame, but class by class
    and the best pairs first, whatever their order."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(
            video_width=width,
            video_height=height,
            track_iou_threshold=OVERLAP,
            max_lost_frame_count=LOST,
            min_instance_period=0,
            min_box_rel_dim=0.0,
        )

    def number(self, found: Instances) -> torch.Tensor:
        """The numbers of the objects in the next frame, from 0, in their order."""
        # Beside each other by class, so that none overlaps with another class.
        shift = 2 * self._video_width * found.pred_classes[:, None] * torch.tensor([1, 0, 1, 0])
        boxes = Boxes(found.pred_boxes.tensor + shift)
        known = {"pred_boxes": boxes, "scores": found.scores, "pred_classes": found.pred_classes}
        tracked = self.update(Instances(found.image_size, **known))
        return torch.as_tensor(tracked.ID, dtype=torch.int64)[: len(found)]  # then the lost ones

    def _create_prediction_pairs(self, *args: Any) -> list[dict[str, Any]]:
        pairs = super()._create_prediction_pairs(*args)
        return sorted(pairs, key=lambda pair: -float(pair["IoU"]))
