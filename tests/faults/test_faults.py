"""The attack tells apart what survives, hangs, crashes or is wrong; the package survives a few."""

import importlib
import random
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as rle

FAULTS = Path(__file__).parents[2] / "projects" / "Faults"
CORPUS = """
import os, signal, time
from gnws_d2.errors import GnwsError

LIMIT = 1.0

def right(rng, folder):
    return ""

def refused(rng, folder):
    raise GnwsError("one line")

def silent(rng, folder):
    return str(rng.random())

def hang(rng, folder):
    time.sleep(60)

def crash(rng, folder):
    os.kill(os.getpid(), signal.SIGKILL)

def traceback(rng, folder):
    raise KeyError("x")

def long(rng, folder):
    raise GnwsError("x" * 10_000)

CLASSES = {f.__name__: (1, f) for f in (right, refused, silent, hang, crash, traceback, long)}
"""


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.syspath_prepend(FAULTS)
    yield importlib.import_module("trials")
    for name in ("trials", "datasets", "reports"):  # short names
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
        if color == 0 and bits >= 8:
            unchanged = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(unchanged, values)
    image, shown = reports.drawn(rng, "RGB", 32, 24)
    for orientation in range(1, 9):
        exif = image.getexif()
        exif[274] = orientation
        assert np.array_equal(ImageOps.exif_transpose(image), reports.turned(shown, orientation))
    for kind in ("polygon", "counts", "compressed"):
        found, box, area = reports.mask(rng, [20, 10, 60, 50], kind)
        if kind == "compressed":
            assert rle.area(found) == area and rle.toBbox(found).tolist() == box
        else:
            made = rle.frPyObjects(found, 96, 128)
            made = made[0] if kind == "polygon" else made
            assert np.allclose(rle.toBbox(made), box, atol=1 if kind == "polygon" else 0)
            assert abs(rle.area(made) - area) <= (0.05 * area if kind == "polygon" else 0)


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
