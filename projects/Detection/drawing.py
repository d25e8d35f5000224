"""Draw predictions into images, as ``gnws_d2.projects.report`` draws."""

from typing import Any

import numpy as np
from detectron2.data import Metadata

from gnws_d2.projects.report import Painter

MIN_DRAWN = 480  # pixels of the shorter side; smaller images are drawn larger, to be readable
MAX_ENLARGED = 4096  # of the longer side of an image that is drawn larger


def draw(
    bgr: np.ndarray, found: dict[str, Any], metadata: Metadata, *, enlarges: bool = True
) -> np.ndarray:
    """Draw the output of a predictor: the segments of a panoptic one; else the class of each pixel
    and the instances, where it has them.

    Args:
        bgr: (H, W, 3) uint8.
        found: tensors on the CPU.
        enlarges: small images are drawn larger.

    Returns:
        RGB, (H', W', 3) uint8.
    """
    short, long = sorted(bgr.shape[:2])
    scale = max(1.0, min(MIN_DRAWN / short, MAX_ENLARGED / long)) if enlarges else 1.0
    painter = Painter(bgr[:, :, ::-1], metadata, scale)
    if "panoptic_seg" in found:
        painter.draw_panoptic_seg(*found["panoptic_seg"], alpha=painter.ALPHA)
    else:
        if "sem_seg" in found:
            painter.draw_sem_seg(found["sem_seg"].argmax(0), alpha=painter.ALPHA)
        if "instances" in found:
            instances = found["instances"]
            if instances.has("track_ids"):
                painter.numbers = instances.track_ids.tolist()
            painter.draw_instance_predictions(instances)
    return painter.output.get_image()


def to_cpu(found: dict[str, Any]) -> dict[str, Any]:
    """The output of a predictor, its tensors on the CPU."""
    return {
        name: (value[0].to("cpu"), value[1]) if name == "panoptic_seg" else value.to("cpu")
        for name, value in found.items()
    }
