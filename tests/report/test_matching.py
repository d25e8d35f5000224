"""AP, precision and F1 against Detectron2's evaluator and against what is counted by hand."""

import copy
import json

import numpy as np
import pytest
from coco_cases import coco, detection, jittered, truth_annotation
from detectron2.data import DatasetCatalog
from pycocotools.coco import COCO

import gnws_d2
from gnws_d2.engine import build_evaluator
from gnws_d2.errors import GnwsError
from gnws_d2.projects.report import curves
from gnws_d2.projects.report.matching import (
    choose,
    confusion_matrix,
    image_results,
    match,
    most_confused,
)

SIGMAS = [0.02, 0.05, 0.08, 0.1]  # of the four keypoints of Digits


@pytest.fixture(scope="module")
def evaluated(tiny_digits, tmp_path_factory):
    """(truth, results file, what Detectron2's evaluator says of it) of noisy detections."""
    folder = tmp_path_factory.mktemp("evaluated")
    cfg = gnws_d2.load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", ["OUTPUT_DIR", str(folder)])
    cfg.DATASETS.TEST, cfg.TEST.KEYPOINT_OKS_SIGMAS = ("tiny_digits_val",), SIGMAS
    DatasetCatalog.get("tiny_digits_val")
    truth = COCO(tiny_digits / "digits_val.json")
    rows = jittered(truth)
    evaluator = build_evaluator(cfg, "tiny_digits_val")
    # What process() makes of a model's outputs. Digits' category ids start at 1.
    found = [{**row, "category_id": row["category_id"] - 1} for row in rows]
    evaluator._predictions = [{"instances": found}]
    results = evaluator.evaluate()
    return truth, folder / "inference" / "coco_instances_results.json", results


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_ap_is_that_of_detectron2s_evaluator(evaluated, task):
    truth, file, results = evaluated
    rows = json.loads(file.read_text())
    before = copy.deepcopy([truth.dataset["annotations"], rows])
    matches = match(truth, rows, task, SIGMAS)
    confusion_matrix(truth, rows, task, 0.5, SIGMAS)
    assert [truth.dataset["annotations"], rows] == before  # COCOeval would write into both
    assert 0 < matches.ap["AP"] < 100
    for name, value in matches.ap.items():
        assert value == pytest.approx(results[task][name], abs=1e-9, nan_ok=True), name
    for name, row in zip(matches.classes, matches.class_ap, strict=True):
        assert row[0] == pytest.approx(results[task][f"AP-{name}"], abs=1e-9, nan_ok=True), name


def test_precision_recall_and_f1_by_hand():
    """Two objects; four detections of the class: right, wrong, a second one of the first object,
    and right."""
    truth = coco([truth_annotation(1, 1, 1, 0), truth_annotation(2, 1, 1, 50)])
    found = ((0, 0.9), (200, 0.8), (1, 0.7), (50, 0.6))
    matches = match(truth, [detection(1, 1, x, score) for x, score in found], "bbox")
    # Recall 0.5 is reached at a precision of 1, recall 1 at the fourth detection: 2 of 4.
    precision = matches.precision[:, 0]
    assert precision[:51] == pytest.approx(1) and precision[51:] == pytest.approx(0.5)
    assert matches.ap["AP50"] == pytest.approx(100 * (51 * 1 + 50 * 0.5) / 101)
    assert [[d["id"] for d in found] for found in (matches.right, matches.wrong)] == [
        [1, 4],
        [2, 3],
    ]
    assert [(a["id"], finder["score"]) for a, finder in matches.finders] == [(1, 0.9), (2, 0.6)]

    right, wrong = (counts[0] for counts in matches.kept)
    assert (right[60], wrong[60]) == (2, 2) and (right[61], wrong[61]) == (1, 2)
    assert (right[90], wrong[90]) == (1, 0) and right[91] == 0
    # F1 is 2/3 with all four (2 * 2 / (4 + 2)), up to 0.6, and with the first alone, above 0.8.
    assert matches.suggested_threshold == pytest.approx(0.30)


def test_detections_of_a_crowd_count_neither_way():
    crowd = {**truth_annotation(2, 1, 1, 100), "iscrowd": 1}
    truth = coco([truth_annotation(1, 1, 1, 0), crowd])
    matches = match(truth, [detection(1, 1, 0, 0.9), detection(1, 1, 100, 0.8)], "bbox")
    assert matches.objects.tolist() == [1, 0] and len(matches.right) == 1 and not matches.wrong
    assert matches.ap["AP"] == pytest.approx(100)


def test_confusion_by_hand():
    objects = ((1, 1, 0), (1, 1, 50), (2, 2, 0), (2, 2, 50))  # image, category, x
    truth = coco([truth_annotation(i, *where) for i, where in enumerate(objects, 1)])
    rows = [
        detection(1, 1, 0, 0.9),  # right
        detection(1, 2, 50, 0.9),  # the other class
        detection(2, 2, 0, 0.9),  # right
        detection(2, 1, 0, 0.8),  # the same object again
        detection(2, 2, 50, 0.3),  # right, below the threshold
        detection(2, 2, 200, 0.6),  # nothing there
    ]
    matrix = confusion_matrix(truth, rows, "bbox", 0.5)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [1, 1, 0]]
    assert most_confused(matrix, ["a", "b"]) == [("a", "b", 1, 0.5)]


def test_all_of_200_detections_in_an_image_count():
    """COCO's limit of 100, also where objects of all classes are matched together."""
    truth = coco([truth_annotation(i, 1, 1 + i % 2, 50 * i) for i in range(1, 201)])
    rows = [detection(1, 1 + i % 2, 50 * i, 0.9 - i / 1000) for i in range(1, 201)]
    for classes in (2, 1):
        for row in (*truth.dataset["annotations"], *rows):
            row["category_id"] = min(row["category_id"], classes)
        matches = match(truth, rows, "bbox")
        assert matches.ap["AP"] == pytest.approx(100) and len(matches.right) == 200
        assert np.trace(confusion_matrix(truth, rows, "bbox", 0.5)) == 200


def test_of_many_classes_the_most_confused_are_plotted():
    """Of 400 classes: as many as fit a page."""
    names = tuple(f"class {k}" for k in range(1, 401))
    truth = coco([truth_annotation(k, 1, k, 50 * k) for k in range(1, 401)], names=names)
    # Of each class up to 370 its object is found, the later ones are taken for each other.
    taken = [k if k <= 370 else 771 - k for k in range(1, 401)]
    rows = [detection(1, taken[k - 1], 50 * k, 0.9) for k in range(1, 401)]
    matrix = confusion_matrix(truth, rows, "bbox", 0.5)
    figure = curves.confusion(matrix, names, "bbox", 0.5)
    assert max(figure.get_size_inches()) < 12
    [axes] = figure.axes
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [*(f"{name} (1)" for name in names[370:]), "nothing there (0)"]
    assert {tuple(t.get_position()): t.get_text() for t in axes.texts} == {
        (29 - i, i): "100" for i in range(30)
    }
    assert "the 30 most confused of 400 classes" in axes.get_title(loc="left")


@pytest.mark.parametrize("annotations", [[], [truth_annotation(1, 1, 1, 0)]])
@pytest.mark.parametrize("rows", [[], [detection(1, 1, 200, 0.9)]])
def test_no_objects_and_no_detections(annotations, rows):
    matches = match(coco(annotations), rows, "bbox")
    assert matches.suggested_threshold is None
    assert matches.ap["AP"] == pytest.approx(0 if annotations else np.nan, nan_ok=True)
    assert [finder for _, finder in matches.finders] == [None] * len(annotations)
    assert not matches.right and len(matches.wrong) == len(rows)
    nothing = match(coco([], names=()), [], "bbox")  # nor classes
    assert nothing.classes == [] and np.isnan(nothing.ap["AP"])
    assert confusion_matrix(coco([], names=()), [], "bbox", 0.5).tolist() == [[0]]


def test_results_of_another_dataset_are_refused():
    with pytest.raises(GnwsError, match="image 99"):
        match(coco([]), [detection(99, 1, 0, 0.5)], "bbox")


def test_images_are_ranked_by_f1_and_shown_once():
    annotations = [truth_annotation(i, i, 1, 0) for i in (1, 2, 3)]
    annotations += [truth_annotation(10 + i, i, 1, 50) for i in (1, 2)]
    truth = coco(annotations, images=6)
    rows = [
        *(detection(1, 1, 0, 0.9), detection(1, 1, 50, 0.9)),  # both
        *(detection(2, 1, 0, 0.9), detection(2, 1, 50, 0.2)),  # one
        detection(4, 1, 0, 0.9),  # an image without objects
    ]
    results = image_results(match(truth, rows, "bbox"), sorted(truth.imgs), 0.5)
    found = [(r.found, r.missed, r.wrong) for r in results[:4]]
    assert found == [(2, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1)]
    chosen = choose(results, 2)
    assert [r.image_id for r in chosen["worst"]] == [3, 4]
    assert [r.image_id for r in chosen["best"]] == [1, 2]
    assert sorted(r.image_id for r in chosen["random"]) == [5, 6]
    assert choose(results, 2) == chosen
