"""Images for TensorBoard: which ones, and that they never end an evaluation."""

import numpy as np
import pytest
import torch
from coco_cases import coco, truth_annotation
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from gnws_d2.projects.report import PredictionImages


@pytest.fixture
def evaluation(tmp_path):
    """(truth, one batch per image: inputs and outputs)"""
    truth = coco([truth_annotation(i, i, 1, 0) for i in range(1, 9)], images=8)
    batches = []
    for number, image in truth.imgs.items():
        file = tmp_path / image["file_name"]
        Image.fromarray(np.zeros((128, 256, 3), np.uint8)).save(file)
        found = Instances((128, 256))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 10, 40, 50], [100, 10, 140, 50]]))
        found.scores = torch.tensor([0.1, 0.2])
        found.pred_classes = torch.tensor([0, 1])
        batches.append(([{"image_id": number, "file_name": str(file)}], [{"instances": found}]))
    MetadataCatalog.get("images_case").set(thing_dataset_id_to_contiguous_id={1: 0, 2: 1})
    yield truth, batches
    MetadataCatalog.remove("images_case")


def put_by(images: PredictionImages, batches) -> list:
    with EventStorage() as storage:
        images.reset()
        for batch in batches:
            images.process(*batch)
        return storage._vis_data


def test_the_same_images_each_time_spread_over_the_dataset(evaluation):
    truth, batches = evaluation
    images = PredictionImages("images_case", truth, number=2)
    put = put_by(images, batches)
    assert [name for name, *_ in put] == ["images_case/0", "images_case/1"]
    for (_, one, _), (_, other, _) in zip(put, put_by(images, batches), strict=True):
        assert one.shape == (3, 270, 2 * 540 + 8) and (one == other).all()
    # Of two detections the better one is drawn, because there is one object: at 100 of 256 pixels.
    prediction = put[0][1][:, :, 548:].max(axis=0)
    assert prediction[60, 100 * 540 // 256 :][:3].max() > 0 and not prediction[60, :80].any()
    # The object, on the left, is at 0.
    assert put[0][1][:, 60, :3].max() > 0


def test_an_image_that_cannot_be_read_ends_no_evaluation(evaluation, caplog):
    truth, batches = evaluation
    batches[0][0][0]["file_name"] = "no such file"
    PredictionImages("images_case", truth).process(*batches[0])  # read in a training alone
    assert put_by(PredictionImages("images_case", truth), batches) == []
    assert len(caplog.messages) == 1 and "no such file" in caplog.text
