"""``gnws convert``: what is written comes back through the readers, and reads as elsewhere."""

import contextlib
import io
from itertools import chain
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from coco_files import HEIGHT, WIDTH, change_all, changed, make_coco, polygon, read
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from gnws.arguments import parse
from gnws_d2.data import read_image
from gnws_d2.projects.own_data.arguments import find_export
from gnws_d2.projects.own_data.coco_file import read_coco
from gnws_d2.projects.own_data.convert import main
from gnws_d2.projects.own_data.source import split_names

NAMES = ("a b/größe 1.png", "a b/x&y <2>'.png", "猫.png", "d.png")  # the last has no object
CLASSES = {9: 'cat & "dog"', 4: "unused", 2: "größe <1>"}
MASK = np.random.default_rng(1).random((HEIGHT, WIDTH)) > 0.7
RLE = mask_util.encode(np.asfortranarray(MASK, np.uint8))
RLE = {"size": RLE["size"], "counts": RLE["counts"].decode()}
SEVERAL = {"segmentation": polygon(1, 2, 3, 4) + polygon(30, 20, 9, 8.1), "bbox": [1, 2, 38, 26.1]}
KINDS = {
    "boxes": {},
    "points": {"keypoints": [1.1, 2, 2, 0, 0, 0, 60, 40.7, 1]},
    "polygons": {"segmentation": polygon(1 / 3, 0.1, 20.7, 3), "bbox": [1 / 3, 0.1, 20.7, 3]},
    "several": SEVERAL,
    "rle": {"segmentation": RLE, "bbox": mask_util.toBbox(RLE).tolist()},
}
POINTS = ["nose", "left_eye", "right_eye"]
CASES = [
    *(("coco", kind) for kind in KINDS),
    *(("yolo", kind) for kind in ("boxes", "points", "polygons")),
    *(("cvat", kind) for kind in ("boxes", "polygons", "several", "rle")),
    ("voc", "boxes"),
]


@pytest.fixture
def file(tmp_path):
    """NAMES, sparse ids, a class without objects, and boxes that are no fractions."""
    file = make_coco(tmp_path, categories=CLASSES, masks=False)
    with changed(file) as coco:
        for image, name in zip(coco["images"], NAMES, strict=True):
            (target := tmp_path / "images" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "images" / image["file_name"]).rename(target)
            image["file_name"] = name
        del coco["annotations"][6:]
        for number, annotation in enumerate(coco["annotations"]):
            annotation["category_id"] = (9, 2)[number % 2]
            annotation["bbox"] = [number / 7, 0.1 * number, 20 / 3, 0.7 + number]
            del annotation["area"]
    return file


def convert(*words):
    main(parse("convert", [*map(str, words)]))


def objects(coco):
    """By image: the class of each object, the number of its polygons, and all its numbers."""
    found = {image["id"]: [image["file_name"]] for image in coco.images}
    for a in coco.annotations:
        mask = a.get("segmentation") or []
        rings = [mask_util.decode(mask).ravel()] if isinstance(mask, dict) else mask
        numbers = np.concatenate([a["bbox"], a.get("keypoints") or [], *rings]).tolist()
        expected = pytest.approx(numbers, rel=1e-9, abs=1e-9)
        found[a["image_id"]].append((coco.class_names[a["category_id"]], len(rings), expected))
    return sorted(found.values(), key=lambda entry: entry[0])


@pytest.mark.parametrize(("to", "kind"), CASES)
def test_there_and_back(file, tmp_path, to, kind):
    change_all(file, **KINDS[kind])
    with changed(file) as coco:
        for category in coco["categories"]:
            category.update({"keypoints": POINTS} if kind == "points" else {})
        if to == "voc":  # which is read folder by folder
            coco["images"], coco["annotations"] = coco["images"][2:], coco["annotations"][4:]
    output = tmp_path / "out" / {"coco": "made.json", "cvat": "made.xml"}.get(to, "made")
    convert(file, "--to", to, "--output", output)
    if to == "yolo":
        (output / "images").symlink_to(tmp_path / "images")
    made = read_coco(*((output / "images",) if to == "yolo" else (output, tmp_path / "images")))
    for one, other in zip(objects(made), objects(read_coco(file)), strict=True):
        assert one[0] == other[0] and [(*o[:2], o[2].expected) for o in one[1:]] == other[1:]
    listed = [[image["file_name"] for image in images] for images in (made.images, coco["images"])]
    assert listed[0] == sorted(listed[1])
    if to != "voc":  # classes without objects too, in the order of their ids
        assert list(made.class_names.values()) == [CLASSES[i] for i in sorted(CLASSES)]
    assert kind != "points" or all(c["keypoints"] == POINTS for c in made.categories)


def test_pycocotools_reads_scores_and_crowds(file, tmp_path):
    change_all(file, **KINDS["rle"], score=0.25, iscrowd=1)
    convert(file, "--output", tmp_path / "made.json")
    with contextlib.redirect_stdout(io.StringIO()):
        made = COCO(tmp_path / "made.json")
    for annotation in read(file)["annotations"]:
        assert made.anns[annotation["id"]] == annotation | {"area": MASK.sum()}
        assert (made.annToMask(made.anns[annotation["id"]]) == MASK).all()
    assert {number: category["name"] for number, category in made.cats.items()} == CLASSES


def test_a_mask_of_cvat_is_rows_of_runs(file, tmp_path, caplog):
    change_all(file, **KINDS["rle"], score=0.5)
    with changed(file) as coco:
        coco["annotations"][1]["iscrowd"] = 1
    convert(file, "--to", "cvat", "--output", tmp_path / "made.xml")
    shapes = [*ElementTree.parse(tmp_path / "made.xml").getroot().iter("mask")]
    assert len(shapes) == 5 and "lost: scores: 6, crowds: 1." in caplog.text
    for entry in shapes:
        left, top, width, height = (int(entry.get(k)) for k in ("left", "top", "width", "height"))
        runs = enumerate(map(int, entry.get("rle").split(", ")))
        inside = np.reshape([i % 2 for i, count in runs for _ in range(count)], (height, width))
        assert (MASK[top : top + height, left : left + width] == inside).all()
        assert inside.sum() == MASK.sum()


def test_splits_and_lines_of_yolo(file, tmp_path, caplog):
    with changed(file) as coco:
        coco["annotations"][0].update(SEVERAL)
    convert("--data", tmp_path, "--to", "yolo", "--output", tmp_path / "made")
    info = yaml.safe_load((tmp_path / "made" / "data.yaml").read_text())
    assert info.pop("names") == {0: CLASSES[2], 1: CLASSES[4], 2: CLASSES[9]}
    assert info == {"train": "images/train", "val": "images/val"}
    for split in info:  # the fixed one of training
        labels = tmp_path / "made" / "labels" / split
        found = {str(p.relative_to(labels).with_suffix(".png")) for p in labels.rglob("*.txt")}
        assert found == split_names(NAMES, split, NAMES[:3])
    line = next((tmp_path / "made" / "labels").rglob("x&y*.txt")).read_text().splitlines()[0]
    center = [(2 / 7 + 10 / 3) / WIDTH, (0.2 + 2.7 / 2) / HEIGHT]
    expected = [2, *center, 20 / 3 / WIDTH, 2.7 / HEIGHT]
    assert list(map(float, line.split(" "))) == pytest.approx(expected, rel=1e-12)
    assert "lost: masks of several polygons: 1." in caplog.text


def test_yolo_as_ultralytics_reads_it(file, tmp_path, caplog):
    """No number is outside of the image, and the last "images" of a path becomes "labels"."""
    change_all(file, segmentation=[[-3, 1, WIDTH + 2, 1, WIDTH, HEIGHT + 5]], bbox=[-3, 1, 70, 50])
    with changed(file) as coco:
        coco["images"][3]["file_name"] = "b/images/d.png"
    (tmp_path / "images" / "b" / "images").mkdir(parents=True)
    (tmp_path / "images" / "d.png").rename(tmp_path / "images" / "b" / "images" / "d.png")
    convert(file, "--to", "yolo", "--output", tmp_path / "made")
    assert (tmp_path / "made" / "images" / "b" / "labels" / "d.txt").read_text() == ""
    lines = (tmp_path / "made" / "labels" / "猫.txt").read_text().splitlines()
    assert lines[0] == f"2 0.0 {1 / HEIGHT!r} 1.0 {1 / HEIGHT!r} 1.0 1.0"
    assert "parts outside of images: 6" in caplog.text


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        ("{file} --output {file}", {}, "mine.json exists. Name another"),
        ("{file} --output x.xml", {}, "x.xml does not end in .json"),
        ("{file} --output x.xml --to cvat", {"bbox": [1, 2, float("nan"), 4]}, "There are 5 more"),
        ("{file} --output x --to voc", {"image_id": 99}, "or go on without these"),
        ("digits_train --output x.json", {}, "Name its annotation file"),
        ("--data {folder} --output x --to yolo", None, "Rename one"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(file, tmp_path, monkeypatch, words, change, said):
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    if change is None:  # two images that differ in their suffix alone, in one part of the split
        (tmp_path / "images" / "d.png").rename(tmp_path / "images" / "猫.jpg")
        with changed(file) as coco:
            coco["images"][3]["file_name"] = "猫.jpg"
    else:
        change_all(file, **change)
    before, words = file.read_bytes(), words.format(file=file, folder=tmp_path).split(" ")
    with pytest.raises(SystemExit) as end:
        convert(*words)
    assert said in str(end.value) and "\n" not in str(end.value)
    assert not [*work.iterdir()] and file.read_bytes() == before
    if change and "x" in words[2]:  # only what is wrong is left out
        convert(*words, "--skip-bad-annotations")
        assert len([*work.rglob("*.xml")]) == (4 if "voc" in words else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_show_parts_of_images_and_objects(file, tmp_path, kind):
    change_all(file, **KINDS[kind])
    with changed(file) as coco:
        for o in coco["annotations"]:
            o.update(source=o["id"], iscrowd=int(o["id"] == 101))
    convert("--data", tmp_path, "--tile", 32, "--output", out := tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        source, *both = map(COCO, [file, *chain(*find_export(out).values())])
    seen = {number: np.zeros((HEIGHT, WIDTH), bool) for number in source.anns}
    for made, tile in ((coco, tile) for coco in both for tile in coco.imgs.values()):
        stem, *corner = tile["file_name"].removesuffix(".png").rsplit("_", 2)
        (x, y), w, h = map(int, corner), tile["width"], tile["height"]
        part = np.s_[y : y + h, x : x + w]
        [written] = out.glob(f"images/*/{tile['file_name']}")
        assert (read_image(written) == read_image(tmp_path / "images" / stem)[part]).all()
        for a in made.imgToAnns[tile["id"]]:
            o = source.anns[a["source"]]
            seen[o["id"]][part] = True
            low, high = (np.reshape(o["bbox"], (2, 2)).cumsum(0) - (x, y)).clip(0, (w, h))
            if kind not in ("boxes", "points"):
                mask = source.annToMask(o)[part]
                assert (made.annToMask(a) == mask).all()
                low, high = (f(np.argwhere(mask)[:, ::-1], axis=0) for f in (np.min, np.max))
                high = high + 1
            assert a["bbox"] == pytest.approx(
                [*low, *(high - low)], abs=1 if kind != "boxes" else 0
            )
            points = np.reshape(o.get("keypoints", []), (-1, 3)) - (x, y, 0)
            points[((points < 0) | (points >= (w, h, 3))).any(1)] = 0
            assert a.get("keypoints", []) == points.ravel().tolist()
    for number, o in source.anns.items():
        area = source.annToMask(o) if "segmentation" in o else seen[number]
        assert (area & seen[number]).sum() > 0.9 * area.sum()
