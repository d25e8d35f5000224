"""What the model gets of an image: as Detectron2's mapper makes it, or resized by OpenCV's rule."""

import operator

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.transforms import AugInput, AugmentationList, ResizeShortestEdge
from detectron2.utils.env import seed_all_rng
from PIL import Image

from gnws_d2 import load_config
from gnws_d2.data import Mapper, NamingMapper, build_test_augmentation, load_train_dataset
from gnws_d2.errors import DatasetError

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"


def resized(mode: str, image: np.ndarray) -> np.ndarray:
    cfg = load_config(
        "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml", ["INPUT.RESIZE_TEST", mode]
    )
    found = AugInput(image)
    AugmentationList(build_test_augmentation(cfg))(found)
    return found.image


SIZES = [(480, 640, 800, 1067), (1200, 1600, 800, 1067), (333, 999, 444, 1333)]


@pytest.mark.parametrize("sizes", [*SIZES, (801, 600, 1068, 800)])
def test_the_image_is_opencvs(sizes):
    height, width, *expected = sizes
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


@pytest.mark.parametrize("opts", [[], ["INPUT.CROP.ENABLED", "True", "INPUT.RANDOM_FLIP", "none"]])
def test_training_resizes_by_its_own_key(opts):
    """Everything else of the mapper is Detectron2's: see the next test."""
    pil, cv = (
        Mapper(load_config(MASK_RCNN, ["INPUT.RESIZE_TRAIN", mode, *opts]), is_train=True)
        for mode in ("pil", "cv2")
    )
    first, *augmentations, last = cv.augmentations.augs
    assert list(map(type, augmentations)) == list(map(type, pil.augmentations.augs))
    [resize] = [a for a in augmentations if isinstance(a, ResizeShortestEdge)]
    image = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    found = AugInput(image)
    AugmentationList([first, resize, last])(found)
    reference = cv2.resize(image, (1067, 800), interpolation=cv2.INTER_LINEAR)
    assert np.abs(found.image.astype(int) - reference).max() <= 1


CONFIGS = [
    *("mask_rcnn_R_18_FPN_gn_ws", "keypoint_rcnn_R_18_FPN_gn_ws"),
    *("semantic_R_18_FPN_gn_ws", "panoptic_fpn_R_18_gn_ws"),
]


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_its_output_is_that_of_detectron2s_mapper(digits, name, is_train):
    cfg = load_config(f"Digits/{name}.yaml", ["INPUT.CROP.ENABLED", "True"])
    records = load_train_dataset(cfg)[:3]
    found, expected = [], []
    for mapper, into in ((Mapper, found), (DatasetMapper, expected)):
        seed_all_rng(3)
        into.extend(mapper(cfg, is_train=is_train)(record) for record in records)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"instances"}:
            same = torch.equal if isinstance(one[key], torch.Tensor) else operator.eq
            assert same(one[key], other[key]) and type(one[key]) is type(other[key])
        if "instances" in one:
            assert str(one["instances"]) == str(other["instances"])


@pytest.mark.parametrize("highest", [180, 1000])
def test_labels_keep_their_values(tmp_path, highest):
    """Of 8 and of 16 bits, resized by the nearest pixel as Pillow does it."""
    values = np.random.default_rng(0).integers(0, highest + 1, (40, 60)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "labels.png")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "image.png")
    opts = ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(80,)"]
    mapper = Mapper(load_config("Digits/semantic_R_18_FPN_gn_ws.yaml", opts), is_train=True)
    files = {"file_name": "image.png", "sem_seg_file_name": "labels.png"}
    record = {key: str(tmp_path / name) for key, name in files.items()}
    mapped = mapper({**record, "height": 40, "width": 60})["sem_seg"]
    expected = Image.fromarray(values.astype(np.int32)).resize((120, 80), Image.Resampling.NEAREST)
    assert mapped.dtype == torch.int64 and (mapped.numpy() == np.asarray(expected)).all()


def test_an_error_names_the_image(tmp_path):
    def refuse(record):
        raise ValueError("it is wrong")

    with pytest.raises(DatasetError, match=r"a\.png cannot be used \(it is wrong\)\. Restore"):
        NamingMapper(refuse)({"file_name": "a.png"})
