"""Tiled prediction, by a detector that finds each blob of an image exactly, and by a model."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances, pairwise_iou
from pycocotools import mask as rle

from gnws_d2 import Predictor
from gnws_d2.errors import ConfigError
from gnws_d2.projects.detection import tiles
from gnws_d2.projects.detection.inputs import Frame
from gnws_d2.projects.detection.results import Results
from gnws_d2.projects.detection.tiles import detect_in_tiles

SIDE, OVERLAP = 160, 0.25  # objects up to 40 pixels are whole in a tile


class Blobs:
    """Finds what is connected in each channel, a class each, with a point in the middle. Smaller
    blobs have higher scores, and so do parts of blobs."""

    classes, category_ids, channels = ["blue", "green", "red"], [1, 2, 3], 3
    metadata = Metadata(thing_classes=classes)

    def __call__(self, image):
        size, rows = image.shape[:2], []
        for channel in range(3):
            on = np.ascontiguousarray(image[..., channel] > 127, np.uint8)
            count, labels, stats, _ = cv2.connectedComponentsWithStats(on)
            for k, (x, y, w, h, area) in zip(range(1, count), stats[1:].tolist(), strict=True):
                rows.append(((x, y, x + w, y + h), channel, 1 / (1 + area), labels == k))
        boxes, classes, scores, masks = zip(*rows, strict=True) if rows else ((),) * 4
        boxes = Boxes(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4))
        found = Instances(size, pred_boxes=boxes, pred_classes=torch.tensor(classes).long())
        found.scores = torch.tensor(scores)
        found.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
        middle = boxes.get_centers()[:, None]
        found.pred_keypoints = torch.cat([middle, torch.ones_like(middle[..., :1])], -1)
        return {"instances": found}


def small_blobs():
    """Up to 40 pixels large, of three classes, one in each cell of 45 pixels."""
    random, image = np.random.default_rng(0), np.zeros((500, 730, 3), np.uint8)
    for channel in range(3):
        for y in range(0, 450, 45):
            for x in range(0, 680, 45):
                w, h = random.integers(3, 41, 2)
                left, top = x + random.integers(0, 44 - w), y + random.integers(0, 44 - h)
                cell = image[top : top + h, left : left + w, channel]
                cell[:] = 255 * (random.random((h, w)) < 0.9)
                cell[0] = cell[:, 0] = 255  # which connect most of it
                cell[1:, 1:] *= np.uint8(w % 3 > 0)  # or all
    return image


def tiled(predictor, image, side=SIDE, overlap=OVERLAP):
    [output] = detect_in_tiles(predictor, image, side, overlap)
    return output["instances"]


def described(found):
    masks = [rle.encode(np.asfortranarray(m, np.uint8))["counts"] for m in found.pred_masks]
    fields = found.pred_boxes.tensor, found.pred_classes, found.scores, found.pred_keypoints
    return sorted(zip(*(f.tolist() for f in fields), masks, strict=True), key=repr)


def test_objects_up_to_the_overlap_are_found_as_in_the_whole_image():
    image = small_blobs()
    found = tiled(Blobs(), image)
    whole = Blobs()(image)["instances"]
    assert len(whole) > 450 and described(found) == described(whole)


def test_larger_objects_are_found_once():
    image = np.zeros((500, 730, 3), np.uint8)
    truth = torch.tensor([[50, 60, 400, 150], [300, 200, 390, 460], [500, 10, 600, 130.0]])
    for x, y, x2, y2 in truth.int().tolist():
        image[y:y2, x:x2, 0] = 255
    found = tiled(Blobs(), image)
    iou = pairwise_iou(found.pred_boxes, Boxes(truth))
    assert (iou > 0.9).sum(0).tolist() == [1, 1, 1] == (iou > 0).sum(0).tolist()
    for mask, overlaps in zip(found.pred_masks, iou, strict=True):
        x, y, x2, y2 = truth[overlaps.argmax()].int().tolist()
        common = mask[y:y2, x:x2].sum()
        assert common > 0.9 * max(int(mask.sum()), (x2 - x) * (y2 - y))


def test_a_model_detects_as_on_each_tile(checkpoint, digits, tmp_path):
    model = Predictor(weights=checkpoint("mask_rcnn_R_18_FPN_gn_ws"))
    image = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    found, seen = tiled(model, image, 96, 0.2), 0
    for left in (0, 64):
        alone = model(image[:, left : left + 96])["instances"]
        for box, mask in zip(alone.pred_boxes, alone.pred_masks, strict=True):
            if box[2] < 94 if left == 0 else box[0] > 2:
                same = (found.pred_boxes.tensor - box - torch.tensor([left, 0] * 2)).abs().amax(1)
                for k in torch.nonzero(same < 1e-4)[:, 0].tolist():
                    whole = np.zeros((96, 160), bool)
                    whole[:, left : left + 96] = mask
                    assert (np.array([*found.pred_masks][k], bool) == whole).all()
                    seen += 1
    assert seen > 3
    for name, one in (("a", {}), ("b", {"tiles": (160, 0.2)})):
        written = Results(model, tmp_path / name, **one)
        written.add(Frame(tmp_path / "image.png", image)), written.write()
    one, other = ((tmp_path / name / "detections.json").read_bytes() for name in "ab")
    assert one == other and b"counts" in one


def test_results_have_the_masks_and_are_drawn_in_parts(tmp_path, monkeypatch):
    image, drawn = np.full((480, 730, 3), 90, np.uint8), []
    image[100:110, 200:230, 0] = image[300:330, 500:520, 2] = 255
    for most in (1 << 29, 1):
        monkeypatch.setattr(tiles, "MOST_MASKS", most)
        written = Results(Blobs(), tmp_path, tiles=(SIDE, OVERLAP))
        drawn.append(written.add(Frame(tmp_path / "image.png", image)).astype(int))
        written.write()
    found = json.loads((tmp_path / "detections.json").read_text())["annotations"]
    assert [a["area"] for a in found] == [300, 600]
    assert (rle.decode(found[1]["segmentation"]) == (image[..., 2] == 255)).all()
    assert np.abs(drawn[0] - image[..., ::-1]).mean() > 10 * np.abs(drawn[0] - drawn[1]).mean()


def test_a_model_of_pixels_is_refused(checkpoint):
    model = Predictor(weights=checkpoint("semantic_R_18_FPN_gn_ws"))
    with pytest.raises(ConfigError, match="--tile needs a model that finds objects"):
        tiled(model, np.zeros((96, 160, 3), np.uint8), 64)
