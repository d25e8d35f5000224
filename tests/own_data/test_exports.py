"""Files as tools wrote them read as independent readers read them: exports/README.md has both."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from gnws_d2.projects.own_data.coco_file import read_coco

EXPORTS = Path(__file__).parent / "exports"
# By source: by image: width and height, and the class, box and number of points of each object.
EXPECTED = json.loads((EXPORTS / "expected.json").read_text(encoding="utf-8"))
LARGE = 7360  # the sides of larger images are in their annotation files


@pytest.mark.parametrize("name", EXPECTED)
def test_as_independent_readers(name, tmp_path):
    shutil.copytree(EXPORTS, tmp_path / "exports")
    source = tmp_path / "exports" / name
    folder = source if name.endswith("/") else source.parent
    folder.mkdir(exist_ok=True)
    for image, (size, *_) in EXPECTED[name].items():
        if size[0] < LARGE:
            Image.new("L", size).save(folder / image, "PNG")
    coco = read_coco(source)
    found = {image["id"]: [[image["width"], image["height"]]] for image in coco.images}
    for a in coco.annotations:
        points = sum(map(len, a.get("segmentation", []))) // 2
        found[a["image_id"]].append([coco.class_names[a["category_id"]], *a["bbox"], points])
    names = {Path(image["file_name"]).name: found[image["id"]] for image in coco.images}
    assert names.keys() == EXPECTED[name].keys()
    for image, (size, *objects) in EXPECTED[name].items():
        assert names[image][0] == size and len(names[image]) == len(objects) + 1
        for (label, *numbers), (expected, *others) in zip(names[image][1:], objects, strict=True):
            assert label == expected and numbers == pytest.approx(others, abs=1e-3), image
