"""Digits is made once and whole, found again, and registered with Detectron2."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances

from gnws_d2.errors import DatasetError, GnwsError
from gnws_d2.files import CACHE_VARIABLE
from gnws_d2.projects import digits
from gnws_d2.projects.digits import __main__ as command

# Forked children take over the imports, which would be most of the work.
FORK = multiprocessing.get_context("fork") if sys.platform == "linux" else None
needs_fork = pytest.mark.skipif(FORK is None, reason="forks")


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Register Digits in an empty folder of the test's own; afterwards where it was before."""
    with monkeypatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        digits.register()
        yield tmp_path / "cache"
    digits.register()


@pytest.fixture
def small(registered, tmp_path):
    """Put a small set where Digits is registered, and return its folder."""
    made = digits.make_digits(tmp_path, num_train=2, num_val=4)
    return shutil.copytree(made, registered / "digits_v3")


@needs_fork
def test_killed_half_way_leaves_nothing_that_counts(tmp_path):
    child = FORK.Process(target=digits.make_digits, args=(tmp_path, 150, 1))
    child.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {
        "digits_v3_150_1.partial",
        "digits_v3_150_1.lock",
        "digits_v3_150_1.lock.holder",
    }
    whole = digits.make_digits(tmp_path, num_train=150, num_val=1)
    assert len(json.loads((whole / "digits_train.json").read_text())["images"]) == 150
    assert len(list(tmp_path.rglob("*.png"))) == 3 * 151


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "missing": lambda folder: (folder / "digits_val.json").unlink(),
    "flipped": lambda folder: flip_bit(folder / "digits_train.json"),
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_folder_is_an_error(tmp_path, damage):
    made = digits.make_digits(tmp_path, num_train=1, num_val=1)
    damage(made)
    with pytest.raises(DatasetError, match=rf"{made}.*Delete it"):
        digits.make_digits(tmp_path, num_train=1, num_val=1)


def test_missing_scikit_learn_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(GnwsError, match=r'pip install "gnws_d2\[demo\]"'):
        digits.make_digits(tmp_path, num_train=1, num_val=1)


def test_finished_folder_needs_no_writing(small):
    before = set(small.parent.iterdir())
    assert digits.make_digits() == small
    assert set(small.parent.iterdir()) == before, "a lock file in a place that may be read-only"


def test_the_command_prints_the_folder(small, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["digits"])  # not pytest's own arguments
    command.main()
    assert capsys.readouterr().out == f"{small}\n"


@pytest.mark.slow
def test_import_makes_nothing_and_leaves_scikit_learn_alone(tmp_path):
    code = "import sys, gnws_d2.projects.digits; assert 'sklearn' not in sys.modules"
    env = {**os.environ, CACHE_VARIABLE: str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not (tmp_path / "cache").exists()


def test_registering_makes_nothing(registered):
    meta = MetadataCatalog.get("digits_val")
    assert meta.json_file == str(registered / "digits_v3" / "digits_val.json")
    assert meta.image_root == str(registered / "digits_v3" / "val")
    assert (meta.evaluator_type, meta.thing_classes) == ("coco", list("0123456789"))
    assert not registered.exists()


def test_the_files_are_read_with_their_masks_and_score_100_against_themselves(small):
    mapper = DatasetMapper(  # neither resizes nor flips
        is_train=True,
        augmentations=[],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    loaded = DatasetCatalog.get("digits_val")
    evaluator = COCOEvaluator("digits_val", distributed=False)
    evaluator.reset()
    for entry in loaded:
        truth = mapper(entry)["instances"]
        assert truth.gt_masks.tensor.shape == (len(entry["annotations"]), 160, 160)
        assert torch.equal(truth.gt_boxes.tensor, truth.gt_masks.get_bounding_boxes().tensor)
        found = Instances(
            truth.image_size,
            pred_boxes=truth.gt_boxes,
            pred_masks=truth.gt_masks.tensor,
            pred_classes=truth.gt_classes,
            scores=torch.ones(len(truth)),
        )
        evaluator.process([entry], [{"instances": found}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
