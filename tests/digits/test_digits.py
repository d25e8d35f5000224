"""What is in the files of Digits: images, boxes, masks, classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from gnws_d2.projects import digits
from gnws_d2.projects.digits import make
from gnws_d2.projects.digits.scans import load_scans, split_ids


def read_coco(folder: Path, split: str) -> COCO:
    return COCO(str(make.json_file(folder, split)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.make_digits(tmp_path_factory.mktemp("digits"), num_train=100, num_val=20)


def test_the_same_every_time_a_smaller_set_is_the_start_of_a_larger_one(folder, tmp_path):
    small = digits.make_digits(tmp_path, num_train=5, num_val=2)
    images = {path.relative_to(small): path.read_bytes() for path in small.rglob("*.png")}
    assert len(images) == 3 * 7
    assert all((folder / path).read_bytes() == data for path, data in images.items())
    for split in ("train", "val"):
        few, more = (read_coco(each, split).dataset["annotations"] for each in (small, folder))
        assert few == more[: len(few)]


def test_splits_divide_every_class_alike():
    labels = np.repeat(np.arange(10), 50)
    train, val = split_ids(labels, "train"), split_ids(labels, "val")
    assert sorted([*train, *val]) == list(range(500))
    assert np.bincount(labels[train]).tolist() == [40] * 10


@pytest.mark.parametrize("split", ["train", "val"])
def test_scans_are_of_the_split_and_have_the_class_of_the_annotation(folder, split):
    scans, coco = load_scans(split), read_coco(folder, split)
    label = dict(zip(scans.ids.tolist(), scans.labels.tolist(), strict=True))
    for a in coco.anns.values():
        assert coco.cats[a["category_id"]]["name"] == str(label[a["scan"]])


@pytest.mark.parametrize("split, count", [("train", 100), ("val", 20)])
def test_annotations_and_label_images_are_those_of_the_masks(folder, split, count):
    """Keypoints are the outermost pixels."""
    coco = read_coco(folder, split)
    assert len(coco.imgs) == count and min(coco.anns) == 1
    for image_id, image in coco.imgs.items():
        with Image.open(folder / split / image["file_name"]) as opened:
            assert (opened.size, opened.mode) == ((image["width"], image["height"]), "RGB")
        annotations = coco.imgToAnns[image_id]
        assert 1 <= len(annotations) <= 5
        masks = np.array([coco.annToMask(a) for a in annotations])
        assert masks.sum(axis=0).max() == 1, "masks overlap"
        expected = np.zeros_like(masks[0])
        for a, mask in zip(annotations, masks, strict=True):
            ys, xs = np.nonzero(mask)
            assert a["area"] == mask.sum() and a["iscrowd"] == 0
            assert a["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            points = np.array(a["keypoints"], int).reshape(4, 3)
            assert (points[:, 2] == 2).all() and a["num_keypoints"] == 4
            assert all(mask[y, x] for x, y, _ in points)
            top, bottom, left, right = points[:, :2]
            assert (left[0], right[0]) == (xs.min(), xs.max())
            assert (top[1], bottom[1]) == (ys.min(), ys.max())
            expected[mask > 0] = a["category_id"]
        semantic, stuff = (
            np.asarray(Image.open(folder / f"{split}_{kind}" / image["file_name"]))
            for kind in ("semantic", "stuff")
        )
        assert (semantic == expected).all() and (stuff == (expected == 0)).all()


def test_masks_lie_on_the_ink(folder):
    """A digit is of one colour but for the grain: its image varies less inside the mask."""
    coco = read_coco(folder, "val")
    for a in coco.anns.values():
        path = folder / "val" / coco.imgs[a["image_id"]]["file_name"]
        pixels = np.asarray(Image.open(path)).astype(float)
        mask = coco.annToMask(a).astype(bool)
        inner = mask.copy()  # without the soft edge
        for axis in (0, 1):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        assert pixels[inner].std(axis=0).max() < 12
        x, y, w, h = (int(v) for v in a["bbox"])
        assert pixels[y : y + h, x : x + w].std(axis=(0, 1)).max() > 15
