"""Colors, labels and keypoints, wherever images are drawn."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from gnws_d2.projects.detection import drawing
from gnws_d2.projects.report import Painter, browse, images
from gnws_d2.projects.report.painter import class_colors

NAMES = ["a $x^$ b", "cat", "traffic_sign_no_overtaking_by_heavy_goods_vehicles " * 3]


def luminance(color) -> float:
    """Relative luminance as WCAG 2 defines it."""
    c = np.array(color[:3])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (
        0.2126,
        0.7152,
        0.0722,
    )


@pytest.mark.parametrize("size", [(640, 480, 1), (7, 9, 50), (600, 13, 2), (2, 400, 10)])
def test_labels_are_whole_and_readable(size):
    width, height, scale = size
    corners = np.random.default_rng(0).uniform(0, 1.1, (60, 2, 2)) * [width, height]
    boxes = np.sort(corners, axis=1).reshape(-1, 4)
    painter = Painter(np.zeros((height, width, 3), np.uint8), None, scale)
    labels = [NAMES[k % 3] + f" {k}%" for k in range(60)]
    painter.overlay_instances(boxes=boxes, labels=labels, assigned_colors=class_colors(range(60)))
    painter.output.get_image()
    texts = painter.output.ax.texts
    assert {text.get_text()[-2:] for text in texts} == {label[-2:] for label in labels}
    for text in texts:
        patch = text.get_bbox_patch()
        x0, y0, x1, y1 = patch.get_window_extent(painter.output.canvas.get_renderer()).extents
        assert min(x0, y0) > -0.1 and x1 < scale * width + 0.1 and y1 < scale * height + 0.1
        one, two = sorted([luminance(patch.get_facecolor()), float(text.get_color() == "white")])
        assert (two + 0.05) / (one + 0.05) >= 4.5


def test_a_class_has_one_color_in_every_image():
    """The ground of the label, which is opaque, has the color of the class."""
    gray, metadata = np.full((200, 300, 3), 128, np.uint8), Metadata(thing_classes=["x"] * 60)
    box, index = Boxes(torch.tensor([[50.0, 50, 250, 150]])), torch.tensor([41])
    found = Instances((200, 300), pred_boxes=box, pred_classes=index)
    mask = torch.zeros(1, 200, 300, dtype=torch.int32)
    mask[:, 60:140, 60:240] = 1
    masked = Instances((200, 300), **found.get_fields(), pred_masks=mask > 0)
    segments = mask[0], [{"id": 1, "category_id": 41, "isthing": True}]
    truth = Instances((200, 300), gt_boxes=box, gt_classes=index)
    mapped = {"image": torch.from_numpy(gray).permute(2, 0, 1), "instances": truth}
    drawn = [
        drawing.draw(gray, {"instances": found}, metadata),
        drawing.draw(gray, {"instances": masked}, metadata),
        drawing.draw(gray, {"panoptic_seg": segments}, metadata),
        drawing.draw(gray, {"instances": found}, metadata, enlarges=False),
        np.array(browse.show(mapped, get_cfg(), metadata)),
        images.draw(
            gray, [{"category_id": 41, "bbox": [50, 50, 200, 100]}], {}, class_colors([41])
        ),
    ]
    shift = np.array([1 << 16, 1 << 8, 1])
    colors = np.round(255 * np.array(class_colors(range(60)))).astype(int) @ shift
    for image in drawn:
        counts = [np.count_nonzero(image @ shift == color) for color in colors]
        assert np.argmax(counts) == 41 and counts[41] > 100


def test_keypoints_are_as_thick_as_the_person_is_large():
    rules = {"keypoint_names": ["a", "b"], "keypoint_connection_rules": [("a", "b", (0, 255, 0))]}
    painter = Painter(np.zeros((900, 900, 3), np.uint8), Metadata(**rules))
    for points in ([[9, 9, 2], [9, 159, 2]], [[9, 9, 2], [9, 309, 2]], [[0, 0, 0], [0, 0, 0]]):
        painter.draw_and_connect_keypoints(np.array(points))
    one, two = (line.get_linewidth() for line in painter.output.ax.lines)
    radii = [dot.radius for dot in painter.output.ax.patches]
    assert two == pytest.approx(2 * one) and radii == pytest.approx(radii[:2] + [2 * radii[0]] * 2)


def test_a_crowd_with_the_masks_of_cocos_files_is_drawn_as_others():
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[10:30, 20:50] = 1
    flat = mask.ravel("F").astype(int)
    runs = np.diff(np.r_[0, np.flatnonzero(np.diff(flat)) + 1, flat.size])
    compressed = mask_util.encode(mask)
    plain = {"counts": runs.tolist(), "size": [40, 60]}
    assert (mask_util.decode(mask_util.frPyObjects(plain, 40, 60)) == mask).all()
    rgb = np.full((40, 60, 3), 255, np.uint8)
    crowd = {"category_id": 1, "bbox": [20, 10, 30, 20], "iscrowd": 1}
    one, other = (
        images.draw(rgb, [{**crowd, "segmentation": m}], {1: "a"}, ["red"])
        for m in (plain, compressed)
    )
    assert (one == other).all() and (one < 255).any()
