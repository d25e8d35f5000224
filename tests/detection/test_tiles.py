"""Tiled prediction, by a detector that finds each blob of an image exactly, and by a model."""

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

SIDE, OVERLAP = 160, 0.25  # objects up to 40 pixels are whole in a tile


class Blobs:
    """Finds what is connected in each channel, a class each. Parts of it have higher scores."""

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
        found = Instances(size, pred_classes=torch.tensor(classes).long())
        found.scores, found.pred_boxes = torch.tensor(scores), Boxes(torch.tensor(boxes).float())
        found.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
        middle = found.pred_boxes.get_centers().reshape(-1, 1, 2)
        found.pred_keypoints = torch.cat([middle, torch.ones_like(middle[..., :1])], -1)
        return {"instances": found}


def tiled(predictor, image, side=SIDE):
    [output] = tiles.detect_in_tiles(predictor, image, side, OVERLAP)
    return output["instances"]


def described(found):
    masks = [rle.encode(np.asfortranarray(m, np.uint8))["counts"] for m in found.pred_masks]
    fields = found.pred_boxes.tensor, found.pred_classes, found.scores, found.pred_keypoints
    return sorted(zip(*(f.tolist() for f in fields), masks, strict=True), key=repr)


def test_objects_up_to_the_overlap_are_found_as_in_the_whole_image():
    random, image = np.random.default_rng(0), np.zeros((500, 730, 3), np.uint8)
    for x, y, channel in np.ndindex(12, 8, 3):
        w, h = random.integers(3, 41, 2)
        left, top = (60 * np.array([x, y]) + random.integers(0, (44 - w, 44 - h))).tolist()
        image[top : top + h, left : left + w, channel] = 255 * (random.random((h, w)) < 0.7)
    whole = Blobs()(image)["instances"]
    assert len(whole) > 300 and described(tiled(Blobs(), image)) == described(whole)


def test_larger_objects_are_found_once():
    image = np.zeros((500, 730, 3), np.uint8)
    truth = torch.tensor([[50, 60, 400, 150], [300, 200, 390, 460], [500, 10, 600, 130.0]])
    for x, y, x2, y2 in truth.int().tolist():
        image[y:y2, x:x2, 0] = 255
    found = tiled(Blobs(), image)
    iou = pairwise_iou(found.pred_boxes, Boxes(truth))
    assert (iou > 0.9).sum(0).tolist() == [1, 1, 1] == (iou > 0).sum(0).tolist()
    assert (found.pred_masks.any(0).numpy() == (image[..., 0] > 0)).mean() > 0.98


def test_an_image_no_larger_than_a_tile_is_detected_on_as_without(checkpoint):
    model = Predictor(weights=checkpoint("mask_rcnn_R_18_FPN_gn_ws"))
    image = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    found, whole = tiled(model, image, 160).get_fields(), model(image)["instances"].get_fields()
    assert torch.equal(found["pred_boxes"].tensor, whole.pop("pred_boxes").tensor)
    assert len(found["scores"]) and all(torch.equal(found[name], whole[name]) for name in whole)


def test_results_have_the_masks_and_are_drawn_in_parts(tmp_path, monkeypatch):
    image = np.full((480, 730, 3), 90, np.uint8)
    image[100:110, 200:230, 0] = image[300:330, 500:520, 2] = 255
    monkeypatch.setattr(tiles, "MOST_MASKS", 1)
    results = Results(Blobs(), tmp_path)
    results.tiles = SIDE, OVERLAP
    drawn = results.add(Frame(tmp_path / "image.png", image)) != image[..., ::-1]
    assert drawn[100:110, 200:230].any() and drawn[300:330, 500:520].any()
    results.write()
    found = results.detections.content()["annotations"]
    assert [a["area"] for a in found] == [300, 600]
    assert (rle.decode(found[1]["segmentation"]) == (image[..., 2] == 255)).all()
    with pytest.raises(ConfigError, match="--tile needs a model that finds objects"):
        tiled(lambda image: {"sem_seg": torch.zeros(2, *image.shape[:2])}, image)
