"""A few images with their truth and the prediction, for TensorBoard, at each evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from gnws_d2.data import read_image
from gnws_d2.errors import GnwsError
from gnws_d2.projects.own_data import short_name

logger = logging.getLogger(__name__)


class PredictionImages(DatasetEvaluator):
    """An evaluator that puts images into the storage of the training that evaluates, from which
    Detectron2's writer for TensorBoard takes them. Outside of a training it does nothing.

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
        metadata = MetadataCatalog.get(dataset_name)
        self._names = metadata.get("thing_classes") or []
        self._index: Any = metadata.get("thing_dataset_id_to_contiguous_id") or {}
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
                try:
                    self._put(given, output["instances"])
                except GnwsError as error:  # images are no reason to end an evaluation
                    logger.warning("No images for TensorBoard: %s", error)
                    self._shown = self._number
            self._seen += 1

    def _put(self, given: dict[str, Any], instances: Any) -> None:
        from .images import beside, without  # not at the top: it imports matplotlib

        rgb = read_image(given["file_name"], format="RGB")
        objects = self._truth.loadAnns(self._truth.getAnnIds(imgIds=[given["image_id"]]))
        instances = instances[instances.scores.argsort(descending=True)[: max(len(objects), 1)]]
        found = instances_to_coco_json(instances.to("cpu"), given["image_id"])
        fields = {"segmentation": "pred_masks", "keypoints": "pred_keypoints"}
        objects = without(objects, [k for k, field in fields.items() if not instances.has(field)])
        truth = self._draw(
            rgb, objects, [self._index.get(a["category_id"], a["category_id"]) for a in objects]
        )
        prediction = self._draw(rgb, found, [d["category_id"] for d in found])
        image = beside(truth, prediction)
        name = f"{short_name(self._name)}/{self._shown}"
        get_event_storage().put_image(name, image.transpose(2, 0, 1))
        self._shown += 1

    def _draw(
        self, rgb: np.ndarray, annotations: Sequence[Mapping[str, Any]], classes: list[int]
    ) -> Any:
        from .images import class_colours, draw

        labels = [self._names[k] if k < len(self._names) else str(k) for k in classes]
        for i, annotation in enumerate(annotations):
            if "score" in annotation:
                labels[i] += f" {annotation['score']:.2f}"
        return draw(rgb, annotations, labels, class_colours(classes))
