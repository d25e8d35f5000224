"""COCO's AP, which detection finds which object, and which class is taken for which other, all
from COCO's evaluation; and which images are worth showing."""

import contextlib
import functools
import io
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

from gnws_d2.engine.evaluation import coco_eval, detection_limit, loaded
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
    def found(self) -> dict[int, float]:
        """The score of what finds it, by each object's id; -1 if nothing does."""
        return {a["id"]: -1.0 if row is None else row["score"] for a, row in self.finders}

    @functools.cached_property
    def verdicts(self) -> dict[int, bool]:
        """Whether it is right, by the id of each detection that counts."""
        return {d["id"]: True for d in self.right} | {d["id"]: False for d in self.wrong}

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
    evaluate = _evaluation(truth, results, task, sigmas)
    evaluation = evaluate()
    evaluation.accumulate()
    found = evaluation.eval["precision"][..., 0]  # (IoU thresholds, recalls, classes, areas)
    found = np.where(found < 0, np.nan, found)  # COCOeval writes -1; for classes without objects
    right, wrong, finders = _counted(evaluate(at_50=True), truth, results)
    precision, *small_to_large = np.moveaxis(found, -1, 0)
    parts = {"AP": precision, "AP50": precision[_IOU_50], "AP75": precision[_IOU_75]}
    sizes = "sml"[-len(small_to_large) :]  # keypoints have no small ones
    parts |= {f"AP{size}": area for size, area in zip(sizes, small_to_large, strict=True)}
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
    kept = [r for r in results if r["score"] >= threshold and r["category_id"] in truth.cats]
    evaluate = _evaluation(truth, kept, task, sigmas, by_class=False)
    index = {id_: k for k, id_ in enumerate(sorted(truth.getCatIds()))}
    background = len(index)
    _, wrong, finders = _counted(evaluate(at_50=True), truth, kept)
    matrix = np.zeros((background + 1, background + 1), dtype=int)
    for detection in wrong:
        matrix[background, index[detection["category_id"]]] += 1
    for annotation, finder in finders:
        column = index[finder["category_id"]] if finder else background
        if annotation["category_id"] in index:
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


def _evaluation(
    truth: COCO, results: Sequence[Row], task: str, sigmas: Sequence[float], by_class: bool = True
) -> Callable[..., COCOeval_faster]:
    """A function that evaluates ``results``; neither argument is changed. ``at_50``: at
    MATCHING_IOU alone, and in objects of any area.

    Args:
        by_class: match only detections and objects of one class.
    """
    if unknown := {row["image_id"] for row in results} - set(truth.imgs):
        raise GnwsError(
            f"the results have detections in image {min(unknown, key=str)!r}, which the "
            "dataset does not have. Evaluate again on this dataset, and then write the report."
        )
    files = loaded(truth, results, task)
    if not by_class:
        for file in files:
            file.dataset["categories"] = [{"id": 1, "name": "any"}]
            for row in file.dataset["annotations"]:
                row["category_id"] = 1
            file.createIndex()
    limit = detection_limit(results, by_class=by_class)

    def evaluate(at_50: bool = False) -> COCOeval_faster:
        evaluation = coco_eval(*files, task, [limit], sigmas)
        if at_50:
            evaluation.params.iouThrs = np.array([MATCHING_IOU])
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        return evaluation

    return evaluate


def coco_api(dataset: dict[str, Any]) -> COCO:
    """pycocotools' ``COCO`` of a dataset in memory, without what it prints."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco.createIndex()
    return coco


def _counted(
    evaluation: COCOeval_faster, truth: COCO, results: Sequence[Row]
) -> tuple[list[Row], list[Row], list[tuple[Row, Row | None]]]:
    """What ``evaluation`` matches at MATCHING_IOU, as in :class:`Matches`: ``right``, ``wrong``,
    ``finders``."""
    objects, detections = evaluation.cocoGt.anns, evaluation.cocoDt.anns
    pairs = (map(int, pair.split("_")) for pair in evaluation.eval["matched"])
    found = dict(pairs)  # the object of each detection
    groups: defaultdict[Any, list[Row]] = defaultdict(list)
    for number, result in enumerate(results, 1):
        category = detections[number]["category_id"]
        if category in evaluation.cocoGt.cats:  # others count neither way
            groups[result["image_id"], category].append({**result, "id": number})
    right, wrong, finders = [], [], {}
    for rows in groups.values():
        rows.sort(key=lambda row: -row["score"])
        for row in rows[: evaluation.params.maxDets[-1]]:  # the others do not count
            number = found.get(row["id"])
            if number is None:
                wrong.append(row)
            elif not objects[number]["ignore"]:
                right.append(row)
                finders[number] = row
    counts = {i for i, annotation in objects.items() if not annotation.get("ignore", True)}
    return right, wrong, [(a, finders.get(i)) for i, a in truth.anns.items() if i in counts]
