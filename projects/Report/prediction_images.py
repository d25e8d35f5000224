"""A few images with their truth and the prediction, for TensorBoard, at each evaluation."""

import logging
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from pycocotools.coco import COCO

from gnws_d2.data import read_image
from gnws_d2.errors import GnwsError
from gnws_d2.projects.own_data import short_name

from .images import beside, draw, without
from .painter import class_colors

logger = logging.getLogger(__name__)


class PredictionImages(DatasetEvaluator):
    """An evaluator that puts images into the storage of the training that evaluates, from which
    Detectron2's writer for TensorBoard takes them. Outside of a training it does nothing.

    It shows the same images each time: some that the main process evaluates, spread over its part
    of the dataset. It draws as many detections as the image has objects, those with the highest
    scores, so that the first evaluations show something too.

    Args:
        dataset_name: a registered dataset.
        truth: its images, annotations and categories.
        number: how many images.
    """

    def __init__(self, dataset_name: str, truth: COCO, number: int = 4) -> None:
        self._dataset_name = dataset_name
        self._truth = truth
        self._number = number
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
                    self._put(given, output["instances"].to("cpu"))
                except GnwsError as error:  # images are no reason to end an evaluation
                    logger.warning("No images for TensorBoard: %s", error)
                    self._shown = self._number
            self._seen += 1

    def _put(self, given: dict[str, Any], instances: Instances) -> None:
        rgb = read_image(given["file_name"], format="RGB")
        objects = self._truth.imgToAnns[given["image_id"]]
        best = instances[instances.scores.argsort(descending=True)[: max(len(objects), 1)]]
        class_of = MetadataCatalog.get(self._dataset_name).get("thing_dataset_id_to_contiguous_id")
        index = {id_: (class_of or {}).get(id_, id_) for id_ in self._truth.cats}
        names = {index[id_]: category["name"] for id_, category in self._truth.cats.items()}
        fields = {"segmentation": "pred_masks", "keypoints": "pred_keypoints"}
        unpredicted = {k for k, field in fields.items() if not best.has(field)}
        truth = [
            {**a, "category_id": index[a["category_id"]]} for a in without(objects, unpredicted)
        ]
        halves = (
            draw(rgb, rows, names, class_colors(row["category_id"] for row in rows))
            for rows in (truth, instances_to_coco_json(best, given["image_id"]))
        )
        name = f"{short_name(self._dataset_name)}/{self._shown}"
        get_event_storage().put_image(name, beside(*halves).transpose(2, 0, 1))
        self._shown += 1
