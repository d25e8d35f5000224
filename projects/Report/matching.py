"""COCO's AP, and which detection finds which object, both from pycocotools' ``COCOeval``."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gnws_d2.errors import GnwsError

MATCHING_IOU = 0.5  # the first of COCOeval's IoU thresholds
THRESHOLDS = np.linspace(0, 1, 101)  # scores; a detection is kept if its own is at least as high
_IOU_INDEX = {50: 0, 75: 5}  # IoU in percent -> index in COCOeval's IoU thresholds
_ALL_AREAS, _MOST_DETECTIONS = 0, -1  # indices in COCOeval's area ranges and limits


@dataclass(frozen=True)
class Matches:
    """Detections compared with the truth of K classes.

    Attributes:
        task: "bbox" or "segm".
        classes: names, in the order of their category ids.
        ap: percent, by COCO's name: AP, AP50, AP75, APs, APm, APl; NaN if undefined.
        class_ap: (K, 3), percent: AP, AP50, AP75 of each class; NaN for a class without objects.
        precision: IoU in percent -> (101, K) precision at the recalls 0, 0.01, ..., 1.
        objects: (K,) the number of objects; crowds are left out.
        image_id, category, score, is_right: one entry per detection, at most 100 per image and
            class: its image, index of its class, score, and whether it finds an object at
            MATCHING_IOU. Detections of crowds are left out.
        detection_id: their ``id``, which is 1 for the first of the results.
        object_id: (objects,) the annotation ids.
        object_image_id: (objects,) their images.
        found_score: (objects,) the score of the detection that finds the object; NaN if none.
    """

    task: str
    classes: list[str]
    ap: dict[str, float]
    class_ap: np.ndarray
    precision: dict[int, np.ndarray]
    objects: np.ndarray
    image_id: np.ndarray
    category: np.ndarray
    score: np.ndarray
    is_right: np.ndarray
    detection_id: np.ndarray
    object_id: np.ndarray
    object_image_id: np.ndarray
    found_score: np.ndarray

    @functools.cached_property
    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """(K, 101) each: right and wrong detections of each class kept at THRESHOLDS."""

        def count(mask: np.ndarray) -> np.ndarray:
            classes = range(len(self.classes))
            scores = [np.sort(self.score[mask & (self.category == k)]) for k in classes]
            kept = [len(s) - np.searchsorted(s, THRESHOLDS) for s in scores]
            return np.array(kept).reshape(len(self.classes), len(THRESHOLDS))

        return count(self.is_right), count(~self.is_right)

    @functools.cached_property
    def suggested_threshold(self) -> float | None:
        """The score threshold with the highest F1 over all detections; None if none is right.

        Where several thresholds share the highest F1, the middle of the longest run of them.
        """
        right, wrong = (counts.sum(axis=0) for counts in self.kept)
        f1 = f1_score(right, wrong, self.objects.sum())
        if not right.any():
            return None
        best = np.flatnonzero(f1 >= np.nanmax(f1) - 1e-9)
        runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
        longest = max(runs, key=len)
        return float(THRESHOLDS[longest[len(longest) // 2]])


def f1_score(right: np.ndarray, wrong: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """2 right / (detections + objects); NaN where there is neither."""
    return ratio(2 * right, right + wrong + objects)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, NaN where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def match(truth: COCO, results: Sequence[dict[str, Any]], task: str) -> Matches:
    """Compare ``results``, detections in COCO's form, with ``truth``.

    Args:
        task: "bbox", or "segm" to compare masks.

    Raises:
        GnwsError: a detection is of an image that ``truth`` does not have.
    """
    evaluation = evaluate(truth, results, task)
    with _silence():
        evaluation.accumulate()
        evaluation.summarize()
    index = {id_: k for k, id_ in enumerate(evaluation.params.catIds)}
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    stats = 100 * _defined(np.asarray(evaluation.stats[: len(names)]))
    # (IoU thresholds, recalls, classes)
    precision = _defined(evaluation.eval["precision"][..., _ALL_AREAS, _MOST_DETECTIONS])
    means = precision.mean(axis=1)  # a class is undefined at all recalls or at none
    class_ap = np.stack([means.mean(axis=0), *(means[i] for i in _IOU_INDEX.values())], axis=1)

    detections, objects = [], []
    for found in per_image(evaluation):
        k = index[found["category_id"]]
        for id_, score, matched, ignored in zip(
            *(found["dtIds"], found["dtScores"]),
            *(found["dtMatches"][0], found["dtIgnore"][0]),
            strict=True,
        ):
            if not ignored:
                detections.append((found["image_id"], k, score, matched > 0, id_))
        for id_, finder, ignored in zip(
            found["gtIds"], found["gtMatches"][0], found["gtIgnore"], strict=True
        ):
            if not ignored:
                score = results[int(finder) - 1]["score"] if finder else np.nan
                objects.append((id_, found["image_id"], score, k))
    image_id, category, score, is_right, detection_id = _columns(detections, 5)
    object_id, object_image_id, found_score, object_category = _columns(objects, 4)
    return Matches(
        task=task,
        classes=[c["name"] for c in truth.loadCats(evaluation.params.catIds)],
        ap=dict(zip(names, stats.tolist(), strict=True)),
        class_ap=100 * class_ap,
        precision={percent: precision[i] for percent, i in _IOU_INDEX.items()},
        objects=np.bincount(object_category.astype(int), minlength=len(index)),
        image_id=image_id,
        category=category.astype(int),
        score=score.astype(float),
        is_right=is_right.astype(bool),
        detection_id=detection_id,
        object_id=object_id,
        object_image_id=object_image_id,
        found_score=found_score.astype(float),
    )


def evaluate(
    truth: COCO, results: Sequence[dict[str, Any]], task: str, *, by_class: bool = True
) -> COCOeval:
    """``COCOeval``, evaluated; neither argument is changed.

    Args:
        by_class: match only detections and objects of one class.
    """
    # COCOeval writes into the annotations, and loadRes into the results.
    annotations = [dict(a) for a in truth.dataset.get("annotations", [])]
    copied = coco_api({**truth.dataset, "annotations": annotations})
    # Without boxes, loadRes takes the area of the mask, as Detectron2's evaluator does.
    dropped = "bbox" if task == "segm" else "segmentation"
    rows = [{k: v for k, v in row.items() if k != dropped} for row in results]
    if rows:
        unknown = {row["image_id"] for row in rows} - set(copied.imgs)
        if unknown:
            raise GnwsError(
                f"the results have detections in image {min(unknown, key=str)!r}, which the "
                "dataset does not have. Evaluate again on this dataset, and then write the report."
            )
        with _silence():
            detected = copied.loadRes(rows)
    else:
        detected = coco_api({**truth.dataset, "annotations": []})
    evaluation = COCOeval(copied, detected, task)
    evaluation.params.useCats = by_class
    with _silence():
        evaluation.evaluate()
    return evaluation


def coco_api(dataset: dict[str, Any]) -> COCO:
    """pycocotools' ``COCO`` of a dataset in memory, without what it prints."""
    coco = COCO()
    coco.dataset = dataset
    with _silence():
        coco.createIndex()
    return coco


def per_image(evaluation: COCOeval) -> Iterator[dict[str, Any]]:
    """What ``COCOeval`` matched in each image and class, objects of all sizes."""
    every_size = evaluation.params.areaRng[_ALL_AREAS]
    return (e for e in evaluation.evalImgs if e is not None and e["aRng"] == every_size)


def _columns(rows: list[tuple], width: int) -> list[np.ndarray]:
    return [np.array(c) for c in zip(*rows, strict=True)] if rows else [np.empty(0)] * width


def _defined(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, np.nan, values)  # COCOeval writes -1


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        yield
