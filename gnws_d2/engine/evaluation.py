"""Detectron2's evaluators, chosen by a dataset's metadata."""

import contextlib
import copy
import importlib.util
import io
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from faster_coco_eval import COCO as FastCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from ..config import DATASET_KEYS, built_architecture, dataset_names
from ..data import read_labels
from ..errors import ConfigError, DatasetError

RESULTS = "coco_instances_results.json"  # the name that Detectron2's evaluator gives it
COCO_LIMIT, KEYPOINT_LIMIT = 100, 20  # detections of an image and class that COCO's AP counts


class COCOEvaluator(evaluation.COCOEvaluator):
    """Detectron2's, with the arguments of that, which

    - also evaluates a model with masks on a dataset of boxes alone, for boxes,
    - names the AP of each class where the classes are not in the order of their ids,
    - counts all that a model detects: COCO's AP counts 100 detections of an image and class, and
      so does this one up to there; ``max_dets_per_image`` sets another limit,
    - warns where images have more objects than ``detections_per_image``, the most that the model
      detects (negative for any number), or than keypoint AP counts,
    - by default writes the truth of a dataset without a file again, each time: the function that
      is registered, or what it reads, may have changed.

    Raises:
        DatasetError: some ids of images are numbers, others texts.
    """

    def __init__(
        self, dataset_name: str, *args: Any, detections_per_image: int = -1, **kwargs: Any
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        is_function = "json_file" not in metadata.as_dict()
        shared: list[list[float]] = []
        if is_function and metadata.get("keypoint_names"):
            # The conversion moves keypoints by half a pixel, also those that the function shares.
            records = DatasetCatalog.get(dataset_name)
            annotations = (a for r in records for a in r.get("annotations", ()))
            shared = [a["keypoints"] for a in annotations if "keypoints" in a]
        kept = copy.deepcopy(shared)
        self._counts_all = kwargs.get("max_dets_per_image") is None
        super().__init__(dataset_name, *args, **{"allow_cached_coco": False, **kwargs})
        for keypoints, values in zip(shared, kept, strict=True):
            keypoints[:] = values
        if is_function:
            del metadata.json_file  # which later evaluations would take for the dataset's own
        if {int, str} <= set(map(type, self._coco_api.imgs)):  # which COCO's evaluation sorts
            raise DatasetError(
                f"{dataset_name} has ids of images that are numbers and others that are texts. "
                "Write all as one of them."
            )
        complete_truth(self._coco_api)
        fix = (
            f"the {detections_per_image} that the model detects at most: the rest are missed. Set "
            "TEST.DETECTIONS_PER_IMAGE, or that of the LazyConfig's model, to the highest number."
        )
        _warn_of_full_images(self._coco_api, "objects", detections_per_image, fix)
        fix = f"the {KEYPOINT_LIMIT} that COCO's keypoint AP counts: the rest lower it."
        _warn_of_full_images(self._coco_api, "objects with keypoints", KEYPOINT_LIMIT, fix)

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        found = [d for p in predictions for d in p["instances"]]
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        of_class = {index: id_ for id_, index in ids.items()}
        for row in found if ids else ():
            if row["category_id"] not in of_class:
                raise DatasetError(
                    f"the model predicts class {row['category_id']}, but the dataset has classes 0 "
                    f"to {max(of_class)}. Evaluate it on a dataset with its classes."
                )
            row["category_id"] = of_class[row["category_id"]]
        if self._output_dir:
            with PathManager.open(str(Path(self._output_dir, RESULTS)), "w") as stream:
                stream.write(json.dumps(found))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        self._logger.info("Evaluating predictions with faster-coco-eval ...")
        limits = self._max_dets_per_image or [1, 10, COCO_LIMIT]
        if self._counts_all:
            limits = [1, 10, detection_limit(found)]
            if limits[-1] > COCO_LIMIT:
                self._logger.info(
                    f"AP counts {limits[-1]} detections of an image; COCO's, {COCO_LIMIT}."
                )
        for task in sorted(self._tasks or self._tasks_from_predictions(found)):
            score = None
            if found:
                files = loaded(self._coco_api, found, task, img_ids)
                score = coco_eval(*files, task, limits, self._kpt_oks_sigmas or ())
                score.evaluate()
                score.accumulate()
                lines: list[str] = []
                score.print_function = lines.append
                score.summarize()
                self._logger.info("COCO's summary:\n%s", "\n".join(lines))
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(score, task, names)

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


def loaded(
    truth: COCO,
    detections: Iterable[Mapping[str, Any]],
    task: str,
    image_ids: Iterable[Any] | None = None,
) -> tuple[FastCOCO, FastCOCO]:
    """``truth`` and ``detections``, in COCO's form, for :func:`coco_eval`. Neither is changed.

    Args:
        task: "bbox", "segm" or "keypoints".
        image_ids: of the images that count, by default all.
    """
    ids = sorted(truth.imgs if image_ids is None else image_ids)
    numbers = {id_: number for number, id_ in enumerate(ids, 1)}  # ids may be texts
    # Without boxes, the area is that of the mask, as in Detectron2's evaluator.
    dropped = "bbox" if task == "segm" else "segmentation"
    annotations, rows = (
        [{**r, "image_id": numbers[r["image_id"]]} for r in listed if r["image_id"] in numbers]
        for listed in (truth.dataset.get("annotations", ()), detections)
    )
    images = [{**truth.imgs[id_], "id": number} for id_, number in numbers.items()]
    content = {"images": images, "categories": truth.dataset["categories"]}
    own = FastCOCO({**content, "annotations": annotations})
    for row in rows:
        row.pop(dropped, None)
    return own, own.loadRes(rows) if rows else FastCOCO({**content, "annotations": []})


def coco_eval(
    truth: FastCOCO,
    detections: FastCOCO,
    task: str,
    limits: Sequence[int] = (),
    sigmas: Sequence[float] = (),
) -> COCOeval_faster:
    """An evaluation by faster-coco-eval: the C++ of Detectron2's own, without compiling that.

    Args:
        limits: the numbers of detections of an image and class that count; not of keypoints.
        sigmas: of keypoints; by default those of COCO's persons.
    """
    evaluation = COCOeval_faster(truth, detections, task, kpt_oks_sigmas=list(sigmas) or None)
    evaluation.params.catIds = sorted(truth.cats)
    if limits and task != "keypoints":
        evaluation.params.maxDets = list(limits)
    expected = len(evaluation.params.kpt_oks_sigmas) if task == "keypoints" else 0
    for file in (truth, detections) if expected else ():
        for row in itertools.islice(file.anns.values(), 1):
            if len(row["keypoints"]) != 3 * expected:
                raise ConfigError(
                    f"TEST.KEYPOINT_OKS_SIGMAS has {expected} values (COCO's, if it is empty), but "
                    f"an object has {len(row['keypoints']) // 3} keypoints. Set one for each."
                )
    return evaluation


def detection_limit(detections: Iterable[Mapping[str, Any]], *, by_class: bool = True) -> int:
    """How many detections of an image, and of a class, AP has to count so that it counts all of
    ``detections``, in COCO's form; at least COCO's own limit."""
    counts = Counter((d["image_id"], by_class and d["category_id"]) for d in detections)
    return max([COCO_LIMIT, *counts.values()])


def _warn_of_full_images(truth: COCO, kind: str, limit: int, fix: str) -> None:
    objects = (a for a in truth.anns.values() if not a.get("iscrowd"))
    counts = Counter(
        a["image_id"] for a in objects if kind == "objects" or a.get("num_keypoints")
    ).values()
    if full := [count for count in counts if 0 <= limit < count]:
        message = f"{len(full)} images have more {kind} (up to {max(full)}) than {fix}"
        log_first_n(logging.WARNING, message, key="message")


def complete_truth(truth: COCO) -> None:
    """Give the annotations what COCO's evaluation needs of them: an id of their own that is not 0,
    which it takes for "not matched", ``iscrowd`` and ``area``."""
    for number, annotation in enumerate(truth.dataset.get("annotations", ()), 1):
        annotation.update({"iscrowd": 0} | annotation | {"id": number})
        if not annotation.get("area"):
            annotation["area"] = object_area(annotation, truth.imgs.get(annotation["image_id"]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()


def object_area(annotation: dict[str, Any], image: dict[str, Any] | None) -> float:
    """The area in pixels of an annotation that does not state it: that of its mask, or of its box
    where it has none.

    Args:
        annotation, image: entries of a COCO file; the image is None if the file lacks it.
    """
    mask = annotation.get("segmentation")
    if isinstance(mask, list):
        mask = [polygon for polygon in mask if len(polygon) >= 6]  # as Detectron2 loads them
    if not mask or image is None:
        width, height = annotation.get("bbox", (0, 0, 0, 0))[2:]
        return width * height
    if isinstance(mask, list) or isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, int(image["height"]), int(image["width"]))
    return float(mask_util.area(mask_util.merge(mask) if isinstance(mask, list) else mask))


# What a model predicts of a dataset that has truth of several kinds; others predict all of it.
_PREDICTED = {"GeneralizedRCNN": "coco", "RetinaNet": "coco", "SemanticSegmentor": "sem_seg"}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator for a registered dataset, chosen by its metadata's ``evaluator_type``.

    Args:
        output_folder: where it writes; by default OUTPUT_DIR/inference, and of several datasets
            a folder of it each.

    Raises:
        ConfigError: its ``evaluator_type`` is not known here, or missing and so are its classes.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type") or ("coco" if metadata.get("thing_classes") else None)
    if kind in ("coco_and_sem_seg", "coco_panoptic_seg"):
        kind = _PREDICTED.get(built_architecture(cfg), kind)
    if kind == "coco_panoptic_seg" and importlib.util.find_spec("panopticapi") is None:
        logging.getLogger(__name__).warning(
            "The panoptic quality is not evaluated: panopticapi is missing. Install "
            "git+https://github.com/cocodataset/panopticapi.git with pip."
        )
        kind = "coco_and_sem_seg"
    name = dataset_name
    out = output_folder or str(Path(cfg.OUTPUT_DIR, "inference", dataset_folder(cfg, name)))
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    options = {"kpt_oks_sigmas": cfg.TEST.KEYPOINT_OKS_SIGMAS, "detections_per_image": limit}
    coco = partial(COCOEvaluator, name, output_dir=out, **options)
    lvis = {"max_dets_per_image": max(limit, 300) if limit >= 0 else limit}  # LVIS's AP counts 300
    # The default function of the copy of Detectron2 on PyPI fails with NumPy 2.
    sem_seg = partial(
        evaluation.SemSegEvaluator, name, output_dir=out, sem_seg_loading_fn=read_labels
    )
    known: dict[str, list[Callable[[], DatasetEvaluator]]] = {
        "coco": [coco],
        "lvis": [partial(evaluation.LVISEvaluator, name, output_dir=out, **lvis)],
        "pascal_voc": [partial(evaluation.PascalVOCDetectionEvaluator, name)],
        "cityscapes_instance": [partial(evaluation.CityscapesInstanceEvaluator, name)],
        "cityscapes_sem_seg": [partial(evaluation.CityscapesSemSegEvaluator, name)],
        "sem_seg": [sem_seg],
        "coco_and_sem_seg": [sem_seg, coco],
        "coco_panoptic_seg": [sem_seg, coco, partial(evaluation.COCOPanopticEvaluator, name, out)],
    }
    if kind not in known:
        raise ConfigError(
            f"DATASETS.TEST names {dataset_name!r}, whose metadata has evaluator_type {kind!r}. "
            f"Set MetadataCatalog.get({dataset_name!r}).evaluator_type to one of "
            f"{', '.join(known)}."
        )
    evaluators = [make() for make in known[kind]]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def dataset_folder(cfg: CfgNode, dataset_name: str) -> str:
    """The folder of a dataset's files in ``inference`` and ``report``: "" if the config evaluates
    only one dataset, else its number and the end of its name."""
    names = dataset_names(cfg, DATASET_KEYS[1:])
    if len(names) < 2 or dataset_name not in names:
        return ""
    words = re.findall(r"[\w.-]+", dataset_name)
    return "_".join([str(names.index(dataset_name) + 1), *words[-2:]])
