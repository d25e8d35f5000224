"""Digits is made once and whole, found again, and registered with Detectron2."""

import json
import shutil
import sys
from unittest import mock

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances

from gnws_d2.errors import GnwsError
from gnws_d2.files import CACHE_VARIABLE
from gnws_d2.projects import digits
from gnws_d2.projects.digits import __main__ as command
from gnws_d2.projects.digits import make


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


def test_what_was_broken_off_does_not_count(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make, "annotation", mock.Mock(side_effect=KeyboardInterrupt))
        digits.make_digits(tmp_path, num_train=2, num_val=1)
    assert [file.parents[1].name for file in tmp_path.rglob("*.png")] == 3 * [
        "digits_v3_2_1.partial"
    ]
    whole = digits.make_digits(tmp_path, num_train=2, num_val=1)
    assert len(json.loads((whole / "digits_train.json").read_text())["images"]) == 2
    assert len(list(tmp_path.rglob("*.png"))) == len(list(whole.rglob("*.png"))) == 3 * 3


def test_missing_scikit_learn_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(GnwsError, match=r'pip install "gnws_d2\[demo\]"'):
        digits.make_digits(tmp_path, num_train=1, num_val=1)


def test_the_command_prints_the_folder_which_needs_no_writing(small, capsys, monkeypatch):
    before = set(small.parent.iterdir())
    monkeypatch.setattr(sys, "argv", ["digits"])  # not pytest's own arguments
    command.main()
    assert capsys.readouterr().out == f"{small}\n"
    assert set(small.parent.iterdir()) == before, "a lock file in a place that may be read-only"


def test_registering_makes_nothing(registered):
    meta = MetadataCatalog.get("digits_val")
    assert meta.json_file == str(registered / "digits_v3" / "digits_val.json")
    assert meta.image_root == str(registered / "digits_v3" / "val")
    assert (meta.evaluator_type, meta.thing_classes) == ("coco", list("0123456789"))
    assert not registered.exists()


def test_the_files_are_read_with_their_masks_and_score_100_against_themselves(small):
    how = {"use_instance_mask": True, "instance_mask_format": "bitmask"}
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR", **how)
    loaded = DatasetCatalog.get("digits_val")
    evaluator = COCOEvaluator("digits_val", distributed=False)
    evaluator.reset()
    for entry in loaded:
        truth = mapper(entry)["instances"]
        assert truth.gt_masks.tensor.shape == (len(entry["annotations"]), 160, 160)
        assert torch.equal(truth.gt_boxes.tensor, truth.gt_masks.get_bounding_boxes().tensor)
        found = Instances(truth.image_size, pred_boxes=truth.gt_boxes)
        found.pred_masks, found.pred_classes = truth.gt_masks.tensor, truth.gt_classes
        found.scores = torch.ones(len(truth))
        evaluator.process([entry], [{"instances": found}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100) == results["segm"]["AP"]
