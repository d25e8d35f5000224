"""The trainings beside MMDetection: what both sides are told, and the page made of the results."""

import json
import math
from pathlib import Path

import numpy as np
import ours
import page
import pytest
import recipe
from pycocotools import mask as mask_util
from recipe import OURS, THEIRS, Job

from gnws_d2.data import load_train_dataset

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "reference"


def test_both_sides_get_the_schedule_of_the_config(tmp_path):
    def cosine(iteration):
        return 0.5 * (1 + math.cos(math.pi * iteration / 750))

    # Detectron2 warms up to the value after the warm-up.
    warm_up = [0.001 + (cosine(50) - 0.001) * i / 50 for i in range(50)]
    expected = [0.03 * share for share in (*warm_up, *map(cosine, range(50, 750)))]
    cfg = recipe.job_config(Job("Mask R-CNN", THEIRS, 1), tmp_path)
    assert recipe.learning_rates(cfg) == pytest.approx(expected, abs=1e-9)


def test_fine_tuning_tells_even_from_odd(tmp_path, digits):
    file, plain = (
        recipe.annotation_file(Job(task, OURS, 1), "val", tmp_path)
        for task in ("fine-tuning", "Mask R-CNN")
    )
    new, old = (json.loads(f.read_text())["annotations"] for f in (file, plain))
    names = {c["id"]: c["name"] for c in json.loads(plain.read_text())["categories"]}
    assert [a["category_id"] - 1 for a in new] == [int(names[a["category_id"]]) % 2 for a in old]
    assert [a["segmentation"] for a in new] == [a["segmentation"] for a in old]


def test_masks_are_resized_as_by_opencv(tmp_path, digits):
    cfg = ours.prepared(Job("Mask R-CNN", OURS, 1, "masks resized as OpenCV"), tmp_path)
    record = load_train_dataset(cfg)[0]
    masks = [mask_util.decode(a["segmentation"]) for a in record["annotations"]]
    places = np.floor(np.arange(128) * 160 / 128).astype(int)  # the pixels that it takes
    expected = [mask[np.ix_(places, places)].astype(bool) for mask in masks]
    found = ours.OpenCVMaskMapper(cfg)(record)["instances"].gt_masks.tensor.numpy()
    assert np.array_equal(found, expected)


def test_the_interval_is_that_of_welch():
    ours, theirs = [3.0, 5.0, 4.0, 6.0], [1.0, 2.0, 6.0, 1.0]
    variances = np.var(ours, ddof=1) / 4, np.var(theirs, ddof=1) / 4
    freedom = sum(variances) ** 2 / sum(v**2 / 3 for v in variances)
    assert 4.62 < freedom < 4.63
    quantile = 2.6347  # of Student's t at 0.975
    half = quantile * math.sqrt(sum(variances))
    assert page.gap(ours, theirs) == f"+2.0 ({2 - half:+.1f} to {2 + half:+.1f})"


def test_the_document_has_the_results():
    """Its tables are those of the files, and each file is of a training that can be run again."""
    results = page.read(RESULTS)
    names = {job.name for job in recipe.jobs()}
    assert results and {file.stem for file in RESULTS.glob("*.json")} <= names
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for table in page.tables(results).values():
        assert table in text
