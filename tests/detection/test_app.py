"""What the web page computes and writes, without a browser; the page itself where Gradio is."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from gnws_d2 import Predictor
from gnws_d2.data import read_image
from gnws_d2.errors import GnwsError
from gnws_d2.projects.detection import app


@pytest.fixture
def image(digits):
    return sorted((digits / "val").glob("*.png"))[0]


def test_boxes_and_masks(checkpoint, image, tmp_path):
    weights = checkpoint("mask_rcnn_R_18_FPN_gn_ws")
    predictor = app.load(weights, "cpu")
    drawn, rows, files = app.detect(predictor, image, 0.05, tmp_path / "found")
    expected = Predictor(weights=weights, score_threshold=0.05)(read_image(image, "BGR"))
    expected = expected["instances"]
    assert drawn.dtype == np.uint8 and drawn.shape == (480, 480, 3)
    assert [row[0] for row in rows] == [str(int(index)) for index in expected.pred_classes]
    assert [row[1] for row in rows] == pytest.approx(expected.scores.tolist(), abs=6e-4)
    corners = expected.pred_boxes.tensor
    sizes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).numpy()
    assert np.abs(np.array([row[2:] for row in rows]) - sizes).max() < 0.051

    names = [f"{image.name}.png", "detections.json", "masks.png"]
    assert files == [str(tmp_path / "found" / name) for name in names]
    content = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert content["images"][0]["file_name"] == image.name
    assert [a["score"] for a in content["annotations"]] == pytest.approx(expected.scores.tolist())
    numbers = np.asarray(Image.open(tmp_path / "found" / "masks.png"))
    [first, *_] = content["annotations"]
    assert np.array_equal(numbers == 1, rle.decode(first["segmentation"]).astype(bool))

    app.detect(predictor, image, 0.99, tmp_path / "found")
    assert json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"] == []


def test_semantic_models_give_labels(checkpoint, image, tmp_path):
    predictor = Predictor(weights=checkpoint("semantic_R_18_FPN_gn_ws"))
    _, rows, files = app.detect(predictor, image, 0.5, tmp_path / "found")
    assert rows == [] and files[-1] == str(tmp_path / "found" / "labels" / f"{image.name}.png")
    labels = predictor(read_image(image, "BGR"))["sem_seg"].argmax(0)
    assert np.array_equal(np.asarray(Image.open(files[-1])), labels.numpy())


def test_the_first_object_is_on_top():
    masks = np.zeros((300, 2, 2), bool)
    masks[0, 0, 0] = masks[1, 0] = masks[299, 1, 1] = True
    assert app.objects_image(masks).tolist() == [[1, 2], [0, 300]]
    assert app.objects_image(masks[:2]).dtype == np.uint8


def test_names_of_models():
    words = ["output/mine/model.pth", "large=output/x=1.pth", "gnws://mask-rcnn"]
    assert app.named_models(words) == {
        "mine/model.pth": "output/mine/model.pth",
        "large": "output/x=1.pth",
        "mask-rcnn": "gnws://mask-rcnn",
    }
    with pytest.raises(GnwsError, match=r"two models are called 'mine/model\.pth'"):
        app.named_models(["a/mine/model.pth", "b/mine/model.pth"])


def test_the_page_is_built(checkpoint, tmp_path):
    try:
        import gradio
    except ImportError:
        pytest.skip("needs Gradio")
    blocks = app.page({"mine": checkpoint("mask_rcnn_R_18_FPN_gn_ws")}, "cpu", tmp_path)
    assert isinstance(blocks, gradio.Blocks)
