"""Resizing as MMDetection does it, against OpenCV itself."""

import cv2
import numpy as np
import pytest
from detectron2.data.transforms import AugInput, ResizeTransform

from gnws_d2 import load_config
from gnws_d2.config import ConfigError
from gnws_d2.data.resize import build_test_augmentation


def resized(mode: str, image: np.ndarray) -> np.ndarray:
    cfg = load_config(
        "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml", ["INPUT.RESIZE_TEST", mode]
    )
    [augmentation] = build_test_augmentation(cfg)
    found = AugInput(image)
    augmentation(found)
    return found.image


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (1200, 1600, (800, 1067)),
        (333, 999, (444, 1333)),
        (801, 600, (1068, 800)),
    ],
)
def test_the_image_is_opencvs(height, width, expected):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = resized("cv2", image)
    assert found.dtype == np.uint8 and found.shape == (*expected, 3)
    reference = cv2.resize(image, expected[::-1], interpolation=cv2.INTER_LINEAR)
    difference = np.abs(found.astype(int) - reference)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.2
    # Detectron2's own is another where the image shrinks.
    pillow = resized("pil", image)
    assert pillow.shape == found.shape
    if expected[0] < height:
        assert np.abs(pillow.astype(int) - reference).mean() > 5


def test_detectron2s_own_is_the_default():
    cfg = load_config("COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml")
    [augmentation] = build_test_augmentation(cfg)
    transform = augmentation.get_transform(np.zeros((480, 640, 3), np.uint8))
    assert type(transform) is ResizeTransform


def test_another_way_is_refused():
    with pytest.raises(ConfigError, match=r"INPUT\.RESIZE_TEST is 'turbo'.*pil.*cv2"):
        load_config("", ["INPUT.RESIZE_TEST", "turbo"])
