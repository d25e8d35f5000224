"""COCO's AP, which detection finds which object, and which class is taken for which other, all
from pycocotools' ``COCOeval``; and which images are worth showing."""

import contextlib
import functools
import io
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gnws_d2.engine.evaluation import detection_limit
from gnws_d2.errors import GnwsError

MATCHING_IOU = 0.5  # the first of COCOeval's IoU thresholds
THRESHOLDS = np.linspace(0, 1, 101)  # scores; a detection is kept if its own is at least as high
_IOU_50, _IOU_75 = 0, 5  # indices in COCOeval's IoU thresholds
Row = dict[str, Any]  # an annotation or a detection in COCO's form


@dataclass(frozen=True)
class Matches:
    """Detections compared with the truth of K classes, at MATCHING_IOU unless another is named.
    All detections count, as in ``gnws_d2.engine.COCOEvaluator``; no crowds, and no detections of
    crowds.

    Attributes:
        task: "bbox", "segm" or "keypoints".
        categories: id -> name, in the order of ids.
        ap: percent, by COCO's name: AP, AP50, AP75, APs, APm, APl; NaN if undefined.
        class_ap: (K, 3), percent: AP, AP50, AP75 of each class; NaN for a class without objects.
        precision: (101, K) at the recalls 0, 0.01, ..., 1.
        right, wrong: detections that find an object, and those that do not, in COCO's form. Their
            ``id`` is 1 for the first of the results.
        finders: each object's annotation, and the detection that finds it or None.
    """

    task: str
    categories: dict[int, str]
    ap: dict[str, float]
    class_ap: np.ndarray
    precision: np.ndarray
    right: list[Row]
    wrong: list[Row]
    finders: list[tuple[Row, Row | None]]

    @property
    def classes(self) -> list[str]:
        return list(self.categories.values())

    @functools.cached_property
    def objects(self) -> np.ndarray:
        """(K,) the number of objects."""
        counts = Counter(annotation["category_id"] for annotation, _ in self.finders)
        return np.array([counts[id_] for id_ in self.categories], int)

    @functools.cached_property
    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """(K, 101) each: right and wrong detections of each class kept at THRESHOLDS."""

        def count(detections: list[Row]) -> np.ndarray:
            scores: dict[int, list[float]] = {id_: [] for id_ in self.categories}
            for detection in detections:
                scores[detection["category_id"]].append(detection["score"])
            kept = [len(s) - np.searchsorted(np.sort(s), THRESHOLDS) for s in scores.values()]
            return np.array(kept).reshape(len(scores), len(THRESHOLDS))

        return count(self.right), count(self.wrong)

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

    @property
    def threshold(self) -> float:
        """The suggested score threshold; 0.5 where there is none."""
        return 0.5 if self.suggested_threshold is None else self.suggested_threshold


def f1_score(right: np.ndarray, wrong: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """2 right / (detections + objects); NaN where there is neither."""
    return ratio(2 * right, right + wrong + objects)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, NaN where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def match(truth: COCO, results: Sequence[Row], task: str, sigmas: Sequence[float] = ()) -> Matches:
    """Compare ``results``, detections in COCO's form, with ``truth``.

    Args:
        task: "bbox", "segm" to compare masks, or "keypoints".
        sigmas: of the keypoints, for their similarity (OKS); by default those of COCO's persons.

    Raises:
        GnwsError: a detection is of an image that ``truth`` does not have.
    """
    evaluation = _coco_eval(truth, results, task, sigmas)
    areas = []  # (IoU thresholds, recalls, classes) each; NaN for classes without objects
    # One at a time: the matches of many classes at all areas would take gigabytes.
    for bounds in reversed(evaluation.params.areaRng):
        evaluation.params.areaRng = [bounds]
        with _silence():
            evaluation.evaluate()
            evaluation.accumulate()
        found = evaluation.eval["precision"][..., 0, 0]
        areas.append(np.where(found < 0, np.nan, found))  # COCOeval writes -1
    right, wrong, finders = _counted(evaluation)  # at the last area, which is any
    *large_to_small, precision = areas
    parts = {"AP": precision, "AP50": precision[_IOU_50], "AP75": precision[_IOU_75]}
    sizes = [*zip("lms", large_to_small, strict=False)]  # keypoints have no small ones
    parts |= {f"AP{size}": area for size, area in reversed(sizes)}
    means = precision.mean(axis=1)  # a class is undefined at all recalls or at none
    class_ap = np.stack([means.mean(axis=0), means[_IOU_50], means[_IOU_75]], axis=1)

    return Matches(
        task=task,
        categories={id_: truth.cats[id_]["name"] for id_ in evaluation.params.catIds},
        ap={n: 100 * float(ratio(np.nansum(v), np.isfinite(v).sum())) for n, v in parts.items()},
        class_ap=100 * class_ap,
        precision=precision[_IOU_50],
        right=right,
        wrong=wrong,
        finders=finders,
    )


def confusion_matrix(
    truth: COCO, results: Sequence[Row], task: str, threshold: float, sigmas: Sequence[float] = ()
) -> np.ndarray:
    """Count objects (rows) by the class that they are detected as (columns).

    Detections with a score of at least ``threshold`` are matched with objects of any class at
    MATCHING_IOU, the highest score first; crowds are left out.

    Returns:
        (K + 1, K + 1) counts, classes in the order of their ids. The last column counts objects
        that are missed, the last row detections where no object is.
    """
    kept = [result for result in results if result["score"] >= threshold]
    evaluation = _coco_eval(truth, kept, task, sigmas, by_class=False)
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    with _silence():
        evaluation.evaluate()
    index = {id_: k for k, id_ in enumerate(sorted(truth.getCatIds()))}
    background = len(index)
    _, wrong, finders = _counted(evaluation)
    matrix = np.zeros((background + 1, background + 1), dtype=int)
    for detection in wrong:
        matrix[background, index[detection["category_id"]]] += 1
    for annotation, finder in finders:
        column = index[finder["category_id"]] if finder else background
        matrix[index[annotation["category_id"]], column] += 1
    return matrix


def most_confused(
    matrix: np.ndarray, classes: Sequence[str], number: int = 1000
) -> list[tuple[str, str, int, float]]:
    """The pairs of different classes that are confused most often.

    Returns:
        (class, detected as, count, share of the class's objects), the highest count first.
    """
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:number]
    pairs = zip(*np.unravel_index(order, between.shape), strict=True)
    return [
        (classes[i], classes[j], int(between[i, j]), float(between[i, j] / matrix[i].sum()))
        for i, j in pairs
        if between[i, j]
    ]


@dataclass(frozen=True)
class ImageResult:
    """How many objects of an image are found and missed, and how many detections are wrong."""

    image_id: int | str
    found: int
    missed: int
    wrong: int

    @property
    def f1(self) -> float:
        """NaN where nothing is there and nothing was detected."""
        return float(f1_score(self.found, self.wrong, self.found + self.missed))


def image_results(
    matches: Matches, image_ids: Iterable[int | str], threshold: float
) -> list[ImageResult]:
    """The result of each image with the detections that have a score of at least ``threshold``."""
    objects = Counter(annotation["image_id"] for annotation, _ in matches.finders)
    # A detection that is right finds one object.
    found = Counter(d["image_id"] for d in matches.right if d["score"] >= threshold)
    wrong = Counter(d["image_id"] for d in matches.wrong if d["score"] >= threshold)
    return [ImageResult(i, found[i], objects[i] - found[i], wrong[i]) for i in image_ids]


def choose(results: list[ImageResult], number: int) -> dict[str, list[ImageResult]]:
    """Up to ``number`` images of each kind, "worst", "best" and "random", none of them twice.

    The worst have the lowest F1 and, of equals, the most errors; the best the highest F1 and, of
    equals, the most objects.
    """
    rated = [r for r in results if not np.isnan(r.f1)]
    number_rated = min(number, -(-len(rated) // 2))
    wrong = [r for r in rated if r.f1 < 1]
    worst = sorted(wrong, key=lambda r: (r.f1, -r.missed - r.wrong))[:number_rated]
    right = [r for r in rated if r.found and r not in worst]
    best = sorted(right, key=lambda r: (-r.f1, -r.found))[:number_rated]
    rest = [r for r in results if r not in worst and r not in best]
    drawn = random.Random(0).sample(rest, min(number, len(rest)))
    return {"worst": worst, "best": best, "random": drawn}


def _coco_eval(
    truth: COCO, results: Sequence[Row], task: str, sigmas: Sequence[float], by_class: bool = True
) -> COCOeval:
    """A ``COCOeval`` to evaluate; neither argument is changed.

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
    if task == "keypoints" and sigmas:
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
    if task != "keypoints":  # of which COCO counts 20
        evaluation.params.maxDets = [detection_limit(rows, by_class=by_class)]
    return evaluation


def coco_api(dataset: dict[str, Any]) -> COCO:
    """pycocotools' ``COCO`` of a dataset in memory, without what it prints."""
    coco = COCO()
    coco.dataset = dataset
    with _silence():
        coco.createIndex()
    return coco


def _counted(evaluation: COCOeval) -> tuple[list[Row], list[Row], list[tuple[Row, Row | None]]]:
    """What ``evaluation`` matches at MATCHING_IOU, as in :class:`Matches`: ``right``, ``wrong``,
    ``finders``."""
    objects, detections = evaluation.cocoGt.anns, evaluation.cocoDt.anns
    right, wrong, finders = [], [], []
    for found in evaluation.evalImgs:  # of one image and class
        if found is None:
            continue
        each = zip(found["dtIds"], found["dtMatches"][0], found["dtIgnore"][0], strict=True)
        for id_, matched, ignored in each:
            if not ignored:
                (right if matched > 0 else wrong).append(detections[id_])
        each = zip(found["gtIds"], found["gtMatches"][0], found["gtIgnore"], strict=True)
        finders += [
            (objects[i], detections.get(finder)) for i, finder, ignored in each if not ignored
        ]
    return right, wrong, finders


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        yield
