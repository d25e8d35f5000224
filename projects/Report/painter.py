"""Detectron2's Visualizer with colors that mean classes, and labels that can be read."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from .curves import short

_FONT = 8.0  # points, of the smallest labels
_LINES = (0, 1, -1, 2, -2, 3, -3, 4, -4)  # by so many lines a label moves, to cover no other


def class_colors(classes: Iterable[int]) -> list[np.ndarray]:
    """The color of each class index, RGB from 0 to 1: the same in all images."""
    colors = colormap(rgb=True, maximum=1)
    return [colors[k % len(colors)] for k in classes]


class Painter(Visualizer):
    """Detectron2's, with :func:`class_colors` for things, then for stuff without colors of its own;
    labels are whole within the image, and masks leave their holes free."""

    ALPHA = 0.5  # of masks: the image is seen through them

    def __init__(self, rgb: np.ndarray, metadata: Metadata | None = None, scale: float = 1) -> None:
        known = metadata.as_dict() if metadata else {}
        colors = [255 * color for color in class_colors(range(2000))]  # classes may have no names
        stuff = colors[len(known.get("thing_classes") or ()) :]
        known = {"stuff_colors": stuff, **known, "thing_colors": colors}
        super().__init__(rgb, Metadata(**known), scale, ColorMode.SEGMENTATION)
        # Points, of the drawn image: lines that grow with the scale would fill a small one.
        self._scale, self.output.scale = scale, 1
        self._default_font_size = max(scale * np.sqrt(self.img[..., 0].size) / 90, 10)
        self._labels: list[Any] = []  # where they are in the drawn image
        self.numbers: list[int] | None = None  # of the instances, a part of their labels

    draw_box = functools.partialmethod(Visualizer.draw_box, alpha=0.8)
    _jitter = staticmethod(to_rgb)
    _change_color_brightness = staticmethod(lambda color, brightness_factor: to_rgb(color))

    def overlay_instances(self, *, boxes: Any = None, masks: Any = None, **rest: Any) -> VisImage:
        if boxes is not None and masks is not None:
            masks = self._convert_masks(masks)
            for mask, color in zip(masks, rest["assigned_colors"], strict=True):
                self.draw_binary_mask(mask.mask, color)
            masks = None
        if self.numbers is not None:
            labels = zip(rest.get("labels") or [""] * len(self.numbers), self.numbers, strict=True)
            rest["labels"] = [f"{label} #{number}" for label, number in labels]
        return super().overlay_instances(boxes=boxes, masks=masks, **{**rest, "alpha": self.ALPHA})

    def draw_binary_mask(self, binary_mask: Any, color: Any = None, **rest: Any) -> VisImage:
        outlines = GenericMask(binary_mask, self.output.height, self.output.width).polygons
        # Outlines of holes run the other way round, so that one path of all leaves them free.
        closed = [Path([*line.reshape(-1, 2), line[:2]], closed=True) for line in outlines]
        if closed:
            path, edge = Path.make_compound_path(*closed), rest.get("edge_color") or color
            fill = (*to_rgb(color), rest.get("alpha", self.ALPHA))
            self.output.ax.add_patch(PathPatch(path, facecolor=fill, edgecolor=edge))
            if rest.get("text"):
                self._draw_text_in_mask(binary_mask.astype(np.uint8), rest["text"], color)
        return self.output

    def draw_and_connect_keypoints(self, keypoints: Any) -> VisImage:
        """Lines and dots are as thick as the person is large."""
        points, axes = np.asarray(keypoints), self.output.ax
        points = points[points[:, 2] > self.keypoint_threshold, :2]
        size = np.hypot(*np.ptp(points, axis=0)) if len(points) else 0
        thickness = max(size / 50, 1.5 / self._scale)  # in pixels of the image
        lines, dots = len(axes.lines), len(axes.patches)
        super().draw_and_connect_keypoints(keypoints)
        for line in axes.lines[lines:]:
            line.set_linewidth(thickness * self._scale * 72 / self.output.dpi)
        for dot in axes.patches[dots:]:
            dot.set_radius(0.75 * thickness)
        return self.output

    def draw_text(self, text: str, position: Any, *, color: Any = "g", **rest: Any) -> VisImage:
        """A label that is too wide is cut in the middle, and then written smaller."""
        rest["font_size"] = max(rest.get("font_size") or self._default_font_size, _FONT)
        super().draw_text(text, position, color=color, **rest)
        label, renderer = self.output.ax.texts[-1], self.output.canvas.get_renderer()
        # Above this luminance black has the higher contrast (WCAG 2).
        is_bright = np.dot(np.power(to_rgb(color), 2.2), (0.2126, 0.7152, 0.0722)) > 0.18
        label.set(parse_math=False, color="black" if is_bright else "white")
        label.set_bbox({"facecolor": color, "edgecolor": "none", "pad": 1.2})

        def extent() -> Any:  # in pixels of the drawn image, from its lower left corner
            label.update_bbox_position_size(renderer)
            return label.get_bbox_patch().get_window_extent(renderer)

        width, height = self.output.width * self._scale, self.output.height * self._scale
        if (box := extent()).width > width:
            label.set_text(short(text, max(int(len(text) * width / box.width), 12)))
        while (fit := min(width / (box := extent()).width, height / box.height)) < 1:
            if label.get_size() < 0.6:  # letters get no smaller
                break
            label.set_size(0.97 * fit * label.get_size())
        right = np.clip(0, -box.x0, width - box.x1)
        ups = [np.clip(-n * box.height, -box.y0, height - box.y1) for n in _LINES]
        free = (u for u in ups if not box.translated(right, u).count_overlaps(self._labels))
        up = next(free, ups[0])
        self._labels.append(box.translated(right, up))
        label.set_position((position[0] + right / self._scale, position[1] - up / self._scale))
        return self.output
