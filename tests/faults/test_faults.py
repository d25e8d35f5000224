"""The attack tells apart what survives, hangs, crashes or is wrong; the package survives a few."""

import importlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

FAULTS = Path(__file__).parents[2] / "projects" / "Faults"
CORPUS = """
import os, signal, time
from gnws_d2.errors import GnwsError
LIMIT = 1.0
def refuse(message):
    raise GnwsError(message)
CLASSES = {
    "right": (1, lambda rng, folder: ""),
    "refused": (1, lambda rng, folder: refuse("one line")),
    "silent": (1, lambda rng, folder: str(rng.random())),
    "hang": (1, lambda rng, folder: time.sleep(60)),
    "crash": (1, lambda rng, folder: os.kill(os.getpid(), signal.SIGKILL)),
    "traceback": (1, lambda rng, folder: {}["x"]),
    "long": (1, lambda rng, folder: refuse("x" * 10_000)),
}
"""


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.syspath_prepend(FAULTS)
    yield importlib.import_module("trials")
    for name in ("trials", "datasets", "reports", "scenes"):  # short names
        sys.modules.pop(name, None)


def test_every_end_of_a_trial_is_told_apart(trials, tmp_path, monkeypatch):
    (tmp_path / "corpus_of_all_ends.py").write_text(CORPUS)
    monkeypatch.syspath_prepend(tmp_path)
    kinds = importlib.import_module("corpus_of_all_ends").CLASSES
    found = {kind: trials.run(f"corpus_of_all_ends/{kind}/0", seed=0)[0] for kind in kinds}
    assert found == {kind: kind for kind in trials.OUTCOMES} | {"long": "traceback"}
    drawn = [trials.run(f"corpus_of_all_ends/silent/{i}", seed=0) for i in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_reports_are_judged_by_is_what_other_libraries_read(trials, tmp_path):
    reports, rng = importlib.import_module("reports"), random.Random(3)
    for color, bits in ((0, 1), (0, 8), (0, 16), (2, 8), (3, 1), (3, 2), (3, 4), (3, 8)):
        values = np.array(rng.choices(range(1 << bits), k=35)).reshape(5, 7)
        (tmp_path / "labels.png").write_bytes(reports.png(values, bits, color))
        read = np.asarray(Image.open(tmp_path / "labels.png"))
        assert np.array_equal(read[..., 0] if color == 2 else read, values)
    content = importlib.import_module("scenes").scene(rng, tmp_path, [12, 12])
    coco = reports.indexed(content)
    for annotation in content["annotations"]:
        mask, is_polygon = coco.annToRLE(annotation), isinstance(annotation["segmentation"], list)
        assert np.allclose(rle.toBbox(mask), annotation["bbox"], atol=3 * is_polygon)
        assert abs(rle.area(mask) - annotation["area"]) <= 0.2 * annotation["area"] * is_polygon


@pytest.mark.parametrize("kind", ["images in one file", "label images", "areas", "truth of parts"])
def test_a_report_survives(trials, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("GNWS_D2_CACHE", "")  # a trial sets its own
    assert trials.perform(f"reports/{kind}/0", 18, tmp_path) == ""


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["configs", "checkpoints", "datasets", "downloads", "reports"])
def test_a_few_trials_of_every_class_survive(corpus):
    # In a process of its own: the trials fork, and autograd must not have run before.
    words = f"{FAULTS / 'faults.py'} {corpus} --dry-run --scale 0.03 --seed 18".split()
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
