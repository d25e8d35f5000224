"""Draw predictions into images, as ``gnws_d2.projects.report`` draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.video_visualizer import VideoVisualizer

from gnws_d2.projects.report import Painter

MIN_DRAWN = 480  # pixels of the shorter side; smaller images are drawn larger, to be readable
MAX_ENLARGED = 4096  # of the longer side of an image that is drawn larger


def draw(bgr: np.ndarray, found: dict[str, Any], metadata: Metadata) -> np.ndarray:
    """Draw the output of a predictor: the segments of a panoptic one; else the class of each pixel
    and the instances, where it has them.

    Args:
        bgr: (H, W, 3) uint8.
        found: tensors on the CPU.

    Returns:
        RGB, (H', W', 3) uint8. Small images are enlarged.
    """
    short, long = sorted(bgr.shape[:2])
    return _draw(bgr, found, metadata, max(1.0, min(MIN_DRAWN / short, MAX_ENLARGED / long)))


def draw_frame(bgr: np.ndarray, found: dict[str, Any], visualizer: VideoVisualizer) -> np.ndarray:
    """The same for a frame of a video, in its size.

    Returns:
        RGB, (H, W, 3) uint8.
    """
    return _draw(bgr, found, visualizer.metadata, 1.0)


def _draw(bgr: np.ndarray, found: dict[str, Any], metadata: Metadata, scale: float) -> np.ndarray:
    painter = Painter(bgr[:, :, ::-1], metadata, scale)
    if "panoptic_seg" in found:
        painter.draw_panoptic_seg(*found["panoptic_seg"], alpha=painter.ALPHA)
    else:
        if "sem_seg" in found:
            painter.draw_sem_seg(found["sem_seg"].argmax(0), alpha=painter.ALPHA)
        if "instances" in found:
            painter.draw_instance_predictions(found["instances"])
    return painter.output.get_image()


def to_cpu(found: dict[str, Any]) -> dict[str, Any]:
    """The output of a predictor, its tensors on the CPU."""
    return {
        name: (value[0].to("cpu"), value[1]) if name == "panoptic_seg" else value.to("cpu")
        for name, value in found.items()
    }
