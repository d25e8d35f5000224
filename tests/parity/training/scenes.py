"""The images and objects of the training cases, drawn with numpy alone: the same bits everywhere.

A scene is a list of images. Objects are polygons whose corners are multiples of 1/64 pixel, so that
they are exact in float32 too, and masks are the pixels whose center lies inside.
"""

import numpy as np

from ..weights import input_image

# Height and width of each image, and of each object: class, x, y, width, height, corners.
SCENES = {
    # Each object has an anchor with an IoU of 0.3 or more, and none covers another.
    "plain": [
        (
            (160, 224),
            [
                (0, 12, 14, 52, 61, 4),
                (17, 96.5, 20.25, 110, 70.5, 9),
                (56, 20, 100, 30.75, 34, 5),
                (79, 150, 110.5, 60, 40, 7),
            ],
        ),
        (
            (160, 224),
            [
                (2, 5.5, 40, 95, 92, 11),
                (2, 120, 8, 38, 30, 4),
                (41, 130.25, 62, 77, 83, 6),
                (60, 176, 10, 40, 36, 8),
                (7, 60, 6, 33, 27, 5),
            ],
        ),
    ],
    # An object of 8 x 8 pixels, whose best anchor has an IoU of 0.06.
    "tiny": [
        (
            (160, 224),
            [
                (0, 12, 14, 52, 61, 4),
                (17, 96.5, 20.25, 110, 70.5, 9),
                (56, 20, 100, 30.75, 34, 5),
                (33, 113.5, 121.5, 8, 8, 4),
            ],
        ),
        (
            (160, 224),
            [
                (2, 5.5, 40, 95, 92, 11),
                (2, 120, 8, 38, 30, 4),
                (41, 130.25, 62, 77, 83, 6),
                (60, 176, 10, 40, 36, 8),
            ],
        ),
    ],
    # Both images are padded, the first in height and the second in width.
    "sizes": [
        (
            (128, 224),
            [(0, 12, 14, 52, 61, 4), (17, 96.5, 20.25, 110, 70.5, 9), (56, 20, 84, 30.75, 34, 5)],
        ),
        (
            (192, 150),
            [(2, 5.5, 40, 95, 92, 11), (60, 104, 10, 40, 36, 8), (41, 50.25, 130, 77, 53, 6)],
        ),
    ],
}
SEED = 3


def images(scene: str) -> list[dict[str, np.ndarray]]:
    """The images of a scene, each with: image, (H, W, 3) uint8 BGR; boxes, (N, 4) float64 XYXY in
    pixels; classes, (N,) int64; masks, (N, H, W) bool."""
    return [_image(*size, objects, SEED + i) for i, (size, objects) in enumerate(SCENES[scene])]


def _image(height: int, width: int, objects: list, seed: int) -> dict[str, np.ndarray]:
    polygons = [_polygon(*place) for _, *place in objects]
    return {
        "image": input_image(height, width, seed),
        "boxes": np.array([[*polygon.min(0), *polygon.max(0)] for polygon in polygons]),
        "classes": np.array([label for label, *_ in objects], dtype=np.int64),
        "masks": np.stack([_mask(polygon, height, width) for polygon in polygons]),
    }


def _polygon(x: float, y: float, width: float, height: float, corners: int) -> np.ndarray:
    """(corners, 2) x and y: the box itself for 4 corners, else a star that touches its sides."""
    if corners == 4:
        unit = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    else:
        number = np.arange(corners)
        angle = 2 * np.pi * (number + 0.3) / corners
        radius = 1 - 0.25 * (number % 2)
        star = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        unit = (star - star.min(0)) / (star.max(0) - star.min(0))
    return np.rint((unit * [width, height] + [x, y]) * 64) / 64


def _mask(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width): a center is inside if a ray to its right crosses an odd number of edges."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            spans = (y0 <= y) != (y1 <= y)
            inside ^= spans & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside
