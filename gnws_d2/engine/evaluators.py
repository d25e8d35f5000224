"""Detectron2's evaluators, chosen by a dataset's metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, coco_evaluation
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..config import ConfigError
from ..data import coco_truth
from ..report.folders import dataset_folder
from .prediction_images import PredictionImages


class CheckedCOCOEvaluator(evaluation.COCOEvaluator):
    """``COCOEvaluator`` against :func:`~gnws_d2.data.coco_truth`: what of the dataset is used, with
    its own ids. A dataset whose metadata names no file is evaluated as Detectron2 does.

    Where the truth has boxes alone, masks are not evaluated. During training, some images go to
    TensorBoard.
    """

    def __init__(self, dataset_name: str, **options: Any) -> None:
        if MetadataCatalog.get(dataset_name).get("json_file"):
            # It has no argument for the truth.
            with mock.patch.object(coco_evaluation, "COCO", lambda _: coco_truth(dataset_name)):
                super().__init__(dataset_name, **options)
        else:
            super().__init__(dataset_name, **options)
        self._images = PredictionImages(dataset_name, self._coco_api)

    def reset(self) -> None:
        super().reset()
        self._images.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        super().process(inputs, outputs)
        self._images.process(inputs, outputs)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        tasks = super()._tasks_from_predictions(predictions)
        truth = self._coco_api.anns.values()
        if "segm" in tasks and truth and not any("segmentation" in a for a in truth):
            self._logger.info("The dataset has boxes only: masks are not evaluated.")
            tasks.remove("segm")
        return tasks

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> dict:
        # pycocotools orders classes by their ids in the file, which a predictor need not.
        if class_names is not None:
            class_names = [self._coco_api.cats[i]["name"] for i in sorted(self._coco_api.cats)]
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _coco(cfg: CfgNode, name: str, out: str) -> DatasetEvaluator:
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    return CheckedCOCOEvaluator(name, output_dir=out, kpt_oks_sigmas=sigmas)


def _sem_seg(cfg: CfgNode, name: str, out: str) -> DatasetEvaluator:
    return evaluation.SemSegEvaluator(name, output_dir=out, sem_seg_loading_fn=_read_labels)


def _read_labels(file: str, dtype: type) -> np.ndarray:
    # The default of the copy of Detectron2 on PyPI fails with NumPy 2.
    with PathManager.open(file, "rb") as stream:
        return np.asarray(Image.open(stream), dtype=dtype)


# evaluator_type -> the evaluators, each made from (config, dataset name, output folder)
_EVALUATORS: dict[str, list[Callable[[CfgNode, str, str], DatasetEvaluator]]] = {
    "coco": [_coco],
    "lvis": [lambda cfg, name, out: evaluation.LVISEvaluator(name, output_dir=out)],
    "pascal_voc": [lambda cfg, name, out: evaluation.PascalVOCDetectionEvaluator(name)],
    "cityscapes_instance": [lambda cfg, name, out: evaluation.CityscapesInstanceEvaluator(name)],
    "cityscapes_sem_seg": [lambda cfg, name, out: evaluation.CityscapesSemSegEvaluator(name)],
    "sem_seg": [_sem_seg],
}
_EVALUATORS["coco_and_sem_seg"] = [*_EVALUATORS["sem_seg"], *_EVALUATORS["coco"]]
_EVALUATORS["coco_panoptic_seg"] = [
    *_EVALUATORS["coco_and_sem_seg"],
    lambda cfg, name, out: evaluation.COCOPanopticEvaluator(name, out),
]


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator for a registered dataset, chosen by its metadata's ``evaluator_type``.

    Args:
        output_folder: where it writes; by default OUTPUT_DIR/inference, and of several datasets
            a folder of it each.

    Raises:
        ConfigError: the dataset has no ``evaluator_type``, or one that is not known here.
    """
    folder = output_folder or str(
        Path(cfg.OUTPUT_DIR, "inference", dataset_folder(cfg, dataset_name))
    )
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise ConfigError(
            f"DATASETS.TEST names {dataset_name!r}, whose metadata has evaluator_type {kind!r}. "
            f"Set MetadataCatalog.get({dataset_name!r}).evaluator_type to one of "
            f"{', '.join(_EVALUATORS)}."
        )
    evaluators = [make(cfg, dataset_name, folder) for make in _EVALUATORS[kind]]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
