"""Larger inputs for small objects."""

import coco_files
import pytest
from coco_files import change_all, config, make_coco

from gnws_d2.projects.own_data import fit_to_data

SMALL = "Small/faster_rcnn_R_18_FPN_gn_ws.yaml"


def fitted(tmp_path, monkeypatch, caplog, image, side, size, explicit=()):
    """INPUT for squares of ``side`` pixels in images of ``image``, where inputs have ``size``, and
    what is said of them."""
    for name in ("HEIGHT", "WIDTH"):
        monkeypatch.setattr(coco_files, name, image)
    file = make_coco(tmp_path, images=2)
    change_all(file, bbox=[1, 1, side, side], segmentation=[], area=side * side)
    sizes = ["INPUT.MIN_SIZE_TRAIN", f"({size}, {2 * size})", "INPUT.MIN_SIZE_TEST", str(size)]
    sizes += ["INPUT.MAX_SIZE_TRAIN", str(4 * size), "INPUT.MAX_SIZE_TEST", str(4 * size)]
    caplog.set_level("INFO", logger="gnws_d2")
    cfg = fit_to_data(config(file, file, *sizes, name=SMALL), explicit=explicit)
    said = sorted(caplog.records, key=lambda record: record.levelno)
    return cfg.INPUT, [r.getMessage() for r in said if "Half of" in r.getMessage()]


@pytest.mark.parametrize(
    ("image", "side", "size", "expected", "remains"),
    [
        (384, 40, 96, 224, False),  # 10 pixels, and 23
        (384, 20, 96, 256, True),  # 2.5 times, at most
        (384, 10, 256, 384, True),  # the size of the image
        (1920, 40, 600, 800, False),  # the size of the published models; 16.7 pixels
    ],
)
def test_small_objects_get_larger_inputs(
    tmp_path, monkeypatch, caplog, image, side, size, expected, remains
):
    found, (reason, *warned) = fitted(tmp_path, monkeypatch, caplog, image, side, size)
    factor = expected / size
    assert found.MIN_SIZE_TEST == expected
    assert found.MIN_SIZE_TRAIN == pytest.approx([expected, 2 * expected], abs=32)
    assert found.MAX_SIZE_TRAIN == found.MAX_SIZE_TEST == pytest.approx(factor * 4 * size, rel=0.1)
    assert f"below {side / image * size:.0f} pixels in inputs of {size}, therefore" in reason
    assert ["gnws convert --tile" in text for text in warned] == [True] * remains


@pytest.mark.parametrize(
    ("image", "side", "explicit", "said"),
    [
        (384, 40, {"INPUT.MAX_SIZE_TEST"}, 1),  # what the user set stays
        (384, 40, None, 0),  # nothing is trained
        (96, 10, (), 1),  # images are not enlarged
        (384, 80, (), 0),  # objects are large enough
    ],
)
def test_inputs_that_stay(tmp_path, monkeypatch, caplog, image, side, explicit, said):
    found, warned = fitted(tmp_path, monkeypatch, caplog, image, side, 96, explicit)
    assert found.MIN_SIZE_TEST == 96 and len(warned) == said
