"""A few images with their truth and the prediction, for TensorBoard, at each evaluation."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.colormap import colormap
from detectron2.utils.events import get_event_storage, has_event_storage

from ..report.images import beside, draw


class PredictionImages(DatasetEvaluator):
    """Puts images into the storage of the training that evaluates, from which Detectron2's writer
    for TensorBoard takes them. Outside of a training it does nothing.

    The same images are shown each time: some that the main process evaluates, spread over its part
    of the dataset. As many detections are drawn as the image has objects, those with the highest
    scores, so that the first evaluations show something too.

    Args:
        dataset_name: has a COCO annotation file.
        truth: its annotations.
        number: how many images.
    """

    def __init__(self, dataset_name: str, truth: Any, number: int = 4) -> None:
        self._name = dataset_name
        self._truth = truth
        self._number = number
        self._categories = truth.loadCats(sorted(truth.getCatIds()))
        self.reset()

    def reset(self) -> None:
        self._seen = 0
        self._shown = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        if not comm.is_main_process() or not has_event_storage():
            return
        each = max(1, len(self._truth.imgs) // comm.get_world_size() // self._number)
        for given, output in zip(inputs, outputs, strict=True):
            if self._seen % each == 0 and self._shown < self._number and "instances" in output:
                self._put(given, output["instances"])
            self._seen += 1

    def evaluate(self) -> dict[str, Any]:
        return {}

    def _put(self, given: dict[str, Any], instances: Any) -> None:
        rgb = read_image(given["file_name"], format="RGB")
        objects = self._truth.loadAnns(self._truth.getAnnIds(imgIds=[given["image_id"]]))
        index = {category["id"]: k for k, category in enumerate(self._categories)}
        instances = instances[instances.scores.argsort(descending=True)[: max(len(objects), 1)]]
        found = instances_to_coco_json(instances.to("cpu"), given["image_id"])
        truth = self._draw(rgb, objects, [index[a["category_id"]] for a in objects])
        prediction = self._draw(rgb, found, [d["category_id"] for d in found])
        image = np.asarray(beside(truth, prediction))
        name = f"{os.path.basename(self._name)}/{self._shown}"
        get_event_storage().put_image(name, image.transpose(2, 0, 1))
        self._shown += 1

    def _draw(self, rgb: np.ndarray, annotations: list[dict[str, Any]], classes: list[int]) -> Any:
        colours = colormap(rgb=True, maximum=1)
        labels = [
            " ".join(
                [self._categories[k]["name"], *([f"{a['score']:.2f}"] if "score" in a else [])]
            )
            for a, k in zip(annotations, classes, strict=True)
        ]
        return draw(rgb, annotations, labels, [colours[k % len(colours)] for k in classes])
