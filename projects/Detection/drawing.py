"""Draw predictions into images, with Detectron2's visualizers."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer

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
    scale = max(1.0, min(MIN_DRAWN / short, MAX_ENLARGED / long))
    visualizer = Visualizer(bgr[:, :, ::-1], metadata, scale=scale)
    if "panoptic_seg" in found:
        visualizer.draw_panoptic_seg(*found["panoptic_seg"])
    else:
        if "sem_seg" in found:
            visualizer.draw_sem_seg(found["sem_seg"].argmax(0))
        if "instances" in found:
            visualizer.draw_instance_predictions(found["instances"])
    return visualizer.output.get_image()


def draw_frame(bgr: np.ndarray, found: dict[str, Any], visualizer: VideoVisualizer) -> np.ndarray:
    """The same for a frame of a video, in which an object keeps its color.

    Returns:
        RGB, (H, W, 3) uint8.
    """
    rgb = np.ascontiguousarray(bgr[:, :, ::-1])
    if "panoptic_seg" in found:
        output = visualizer.draw_panoptic_seg_predictions(rgb, *found["panoptic_seg"])
    elif "instances" in found:
        output = visualizer.draw_instance_predictions(rgb, found["instances"])
    else:
        output = visualizer.draw_sem_seg(rgb, found["sem_seg"].argmax(0))
    return output.get_image()


def to_cpu(found: dict[str, Any]) -> dict[str, Any]:
    """The output of a predictor, its tensors on the CPU."""
    return {
        name: (value[0].to("cpu"), value[1]) if name == "panoptic_seg" else value.to("cpu")
        for name, value in found.items()
    }
