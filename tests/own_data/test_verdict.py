"""The check of a file that is not repeated while nothing has changed."""

import os

import pytest
from coco_files import changed, make_coco
from PIL import Image

from gnws_d2.projects.own_data import check, verdict
from gnws_d2.projects.own_data.check import check_coco
from gnws_d2.projects.own_data.coco_file import read_coco
from gnws_d2.projects.own_data.image_files import ImageFiles


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """A function that checks a file with damage, and says what was found and whether by a check."""
    monkeypatch.setenv("GNWS_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verdict, "WORTH", 0.0)
    file, runs = make_coco(tmp_path), []

    def counted(*args, **options):
        runs.append(args)
        return check_coco(*args, **options)

    monkeypatch.setattr(check, "check_coco", counted)

    def run(needs_masks=False):
        coco, images = read_coco(file), ImageFiles(tmp_path / "images")
        before = len(runs)
        found = verdict.check_once(coco, images, needs_masks)
        assert found == check_coco(coco, images, needs_masks=needs_masks)
        return found, len(runs) > before

    run.file = file
    return run


def test_it_is_found_again_with_problems_and_warnings(checked, monkeypatch):
    said = []
    monkeypatch.setattr(check, "warn_once", said.append)
    with changed(checked.file) as coco:
        coco["annotations"][2]["bbox"] = [500, 500, 5, 5]
        coco["annotations"][5]["bbox"][2] = 0
        coco["images"][3]["width"] = 5
    (sound, problems), is_checked = checked()
    assert is_checked and len(sound.images) == 3 and len(problems) == 2
    again, is_checked = checked()
    assert not is_checked and again == (sound, problems)
    assert len(said) == 2 and said[0] == said[1] and "without width or height" in said[0]


@pytest.mark.parametrize(
    "change", ["annotation", "category", "image", "missing", "touched", "masks", "limit", "code"]
)
def test_every_change_is_checked_again(checked, change, monkeypatch, tmp_path):
    checked()
    image = tmp_path / "images" / "0.png"
    with changed(checked.file) as coco:
        if change == "annotation":
            coco["annotations"][0]["bbox"][0] += 1e-9
        if change == "category":
            coco["categories"][0]["name"] = "cow"
    if change == "image":
        Image.new("RGB", (9, 9)).save(image)
    if change == "missing":
        image.unlink()
    if change == "touched":
        os.utime(image, ns=(1, 1))
    if change == "limit":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    if change == "code":
        monkeypatch.setattr(check, "__file__", __file__)
    assert checked(needs_masks=change == "masks")[1]
    assert not checked(needs_masks=change == "masks")[1]


def test_a_cache_that_cannot_be_written_to_is_done_without(checked, tmp_path):
    (tmp_path / "cache").write_text("")
    assert checked()[1] and checked()[1]


def test_a_short_check_leaves_no_file(checked, monkeypatch, tmp_path):
    monkeypatch.setattr(verdict, "WORTH", 60.0)
    assert checked()[1] and not (tmp_path / "cache").exists()
