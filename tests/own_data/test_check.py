"""Damaged datasets, one by one: each is refused in one line that names file, image or annotation,
for training and for evaluation, and what is left trains where the damage is skipped."""

import json
import math
import os

import numpy as np
import pytest
import torch
from coco_files import HEIGHT, SKIP, WIDTH, changed, fit, make_coco, polygon, read, truth, write
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools import mask as mask_util

from gnws_d2.data import load_train_dataset
from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data.check import check_coco
from gnws_d2.projects.own_data.coco_file import read_coco
from gnws_d2.projects.own_data.image_files import ImageFiles

MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[6:18, 4:20] = 1  # as the box of annotation 100
RLE = mask_util.encode(np.asfortranarray(MASK))["counts"].decode()
SIZE = [HEIGHT, WIDTH]


def rle(counts, size=SIZE):
    return {"segmentation": {"size": size, "counts": counts}}


# Of annotation 100, box [4, 6, 16, 12] in an image of 64 x 48: members, and what is said.
OF_ANNOTATION = {
    "bbox NaN": ({"bbox": [math.nan, 6, 16, 12]}, "bbox is [nan, 6, 16, 12], not finite"),
    "bbox huge": ({"bbox": [4, 6, 1e300, 12]}, "outside its image of 64 x 48 pixels"),
    "bbox negative": ({"bbox": [20, 18, -16, -12]}, "of negative width or height"),
    "bbox normalized": ({"bbox": [0.06, 0.125, 0.25, 0.25]}, "which looks normalized"),
    "bbox corners": ({"bbox": [40, 30, 60, 44], "segmentation": []}, "looks like two corners"),
    "bbox corners by mask": (
        {"bbox": [10, 8, 20, 14], "segmentation": polygon(10, 8, 10, 6)},
        "which looks like two corners: its mask is in [10, 8, 10, 6]",
    ),
    "bbox corners by area": (
        {"bbox": [10, 8, 20, 14], "segmentation": [], "area": 60.0},
        "which looks like two corners: its area is 60",
    ),
    "bbox outside": ({"bbox": [70, 6, 16, 12]}, "outside its image of 64 x 48 pixels"),
    "bbox short": ({"bbox": [4, 6, 16]}, "bbox is [4, 6, 16], not [x, y, width, height]"),
    "bbox text": ({"bbox": "4,6,16,12"}, "bbox is '4,6,16,12', not"),
    "bbox elsewhere": ({"bbox": [44, 30, 10, 10]}, "but its mask is in [4, 6, 16, 12]"),
    "iscrowd text": ({"iscrowd": "1"}, "iscrowd is '1', not 0 or 1"),
    "iscrowd 2": ({"iscrowd": 2}, "iscrowd is 2, not 0 or 1"),
    "ignore": ({"ignore": 1}, "it has the member ignore"),
    "area NaN": ({"area": math.nan}, "area is nan"),
    "area negative": ({"area": -1}, "area is -1"),
    "category unknown": ({"category_id": 77}, "category_id, 77, is not the id of a category"),
    "category text": ({"category_id": "cat"}, "category_id, 'cat', is not the id of a category"),
    "category true": ({"category_id": True}, "category_id, True, is not the id of a category"),
    "polygon NaN": ({"segmentation": [[math.nan] * 6]}, "coordinates that are not finite"),
    "polygon huge": ({"segmentation": [[1e30, 1] * 3]}, "far outside its image of 64 x 48"),
    "polygon flat": ({"segmentation": [4, 6, 20, 6, 20, 18]}, "is one flat list"),
    "polygon of text": ({"segmentation": [["4", "6"] * 3]}, "its polygon is ['4', '6'"),
    "polygon of pairs": ({"segmentation": [[[4, 6], [20, 6], [20, 18]]]}, "its polygon is [[4, 6]"),
    "segmentation text": ({"segmentation": RLE}, "neither polygons nor RLE"),
    "RLE without counts": ({"segmentation": {"size": SIZE}}, "its RLE is damaged"),
    "RLE empty": (rle(""), "its RLE is damaged: its counts sum to 0, not to 48 x 64 = 3072"),
    "RLE of other size": (rle(RLE, [WIDTH, HEIGHT]), "its RLE has size [64, 48], not [48, 64]"),
    "runs short": (rle([100, 100]), "counts sum to 200, not to 48 x 64"),
    "keypoints NaN": ({"keypoints": [math.nan, 6, 2]}, "not finite [x, y, visibility, ...]"),
    "keypoints cut": ({"keypoints": [4, 6]}, "not finite [x, y, visibility, ...]"),
    "keypoints visibility": ({"keypoints": [4, 6, 7]}, "visibility is not 0, 1 or 2"),
}


def refused(file, *said):
    """It is refused in one line."""
    with pytest.raises(DatasetError) as caught:
        fit(file, file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message and len(message) < 800
    assert all(part in message for part in (*said, "--skip-bad-annotations")), message


@pytest.mark.parametrize("damage", OF_ANNOTATION)
def test_a_damaged_annotation(file, damage):
    members, said = OF_ANNOTATION[damage]
    with changed(file) as coco:
        coco["annotations"][0].update(members)
    refused(file, said, "annotation 100 of '0.png': ")
    fit(file, file, *SKIP)
    assert [a["id"] for a in DatasetCatalog.get(str(file))[0]["annotations"]] == [101]
    assert sorted(truth(file).anns) == list(range(101, 108))
    (skipped,) = json.loads((file.parent / "output/skipped_annotations.json").read_text()).values()
    assert [(s["image"], s["annotation"]) for s in skipped] == [(10, 100)]


# Members of the first image or annotation; what is said, and how many images and annotations are
# left out.
OF_IDS = [
    ("annotations", {"id": 101}, "101 of '0.png': 2 annotations have this id. There", 0, 2),
    ("annotations", {"image_id": 999}, "100: its image_id, 999, is not the id of an image", 0, 1),
    ("images", {"id": 11}, "'0.png' (id 11): 2 images have this id. There are 3 more", 2, 4),
    ("images", {"id": None}, "image '0.png' (id None): its id is None", 1, 2),
    ("images", {"width": 0}, "its size is 0 x 48", 1, 2),
    ("images", {"width": 48, "height": 64}, "64 x 48 pixels, but the annotations say 48", 1, 2),
    ("images", {"file_name": "1.png"}, "'1.png' (id 10): the file is listed 2 times", 2, 4),
    ("images", {"file_name": None}, "image None (id 10): its file_name is None", 1, 2),
    ("images", {"file_name": "a\n" * 200}, r"image 'a\na\na", 1, 2),
    ("images", {"file_name": "a\0.png"}, r"file_name is 'a\x00.png'", 1, 2),
]


@pytest.mark.parametrize(("kind", "members", "said", "images", "annotations"), OF_IDS)
def test_damaged_ids_and_images(file, kind, members, said, images, annotations):
    with changed(file) as coco:
        coco[kind][0].update(members)
    refused(file, said, f"{kind[:-1]} ")
    fit(file, file, *SKIP)
    used = truth(file)
    assert list(used.imgs) == [10, 11, 12, 13][images:]
    assert list(used.anns) == list(range(100 + annotations, 108))
    assert [r["image_id"] for r in DatasetCatalog.get(str(file))] == list(used.imgs)


def rotated(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(image, exif=exif)


IMAGE_FILES = {
    "missing": (lambda image: image.unlink(), "0.png does not exist"),
    "empty": (lambda image: image.write_bytes(b""), "0.png cannot be read"),
    "no image": (lambda image: image.write_text("404 Not Found"), "0.png cannot be read"),
    "a folder": (lambda image: (image.unlink(), image.mkdir()), "0.png is not a regular file"),
    "a FIFO": (lambda image: (image.unlink(), os.mkfifo(image)), "0.png is not a regular file"),
    "EXIF ignored": (rotated, "they ignore its EXIF orientation, 6"),
    "float pixels": (
        lambda image: Image.fromarray(MASK.astype(np.float32)).save(image, format="TIFF"),
        "0.png has 32-bit pixels",
    ),
}


@pytest.mark.parametrize("damage", IMAGE_FILES)
def test_damaged_image_files(file, damage):
    spoil, said = IMAGE_FILES[damage]
    spoil(file.parent / "images" / "0.png")
    refused(file, said, "image '0.png' (id 10): ")
    fit(file, file, *SKIP)
    assert list(truth(file).imgs) == [11, 12, 13]


def replaced(**members):
    return lambda file: write(file, {**read(file), **members})


def rewritten(old, new):
    return lambda file: file.write_text(file.read_text().replace(old, new, 1))


CAT = {"id": 7, "name": "cat"}


FILES = {
    "missing": (lambda file: file.unlink(), r"does not exist"),
    "a FIFO": (lambda file: (file.unlink(), os.mkfifo(file)), r"not a regular file"),
    "empty": (lambda file: file.write_text(""), r"not valid JSON.*Fetch it again"),
    "cut off": (lambda file: file.write_text(file.read_text()[:500]), r"not valid JSON"),
    "two of a member": (rewritten('"bbox"', '"bbox": 1, "bbox"'), r"'bbox' appears twice"),
    "deep": (lambda file: file.write_text("[" * 100_000), r"not valid JSON"),
    "a list": (lambda file: file.write_text("[]"), r"it holds a list"),
    "another form": (lambda file: file.write_text('{"pictures": []}'), r"'images' is missing"),
    "no categories": (rewritten("categories", "other"), r"'categories' is missing"),
    "no images": (replaced(images=[]), r"lists no images"),
    "images null": (replaced(images=None), r"'images' is a NoneType, not a list"),
    "images of text": (replaced(images=["a.png"]), r"images\[0\] is 'a\.png'"),
    "annotations of lists": (replaced(annotations=[[1]]), r"annotations\[0\] is \[1\]"),
    "no annotations": (replaced(annotations=[]), r"no annotations"),
    "categories empty": (replaced(categories=[]), r"lists no categories"),
    "category without a name": (replaced(categories=[{"id": 7}]), r"category 7 has name None"),
    "category without an id": (replaced(categories=[{"name": "a"}]), r"\[0\] has id None"),
    "category ids twice": (replaced(categories=[CAT, CAT]), r"id 7 is used for 'cat', 'cat'"),
    "names twice": (replaced(categories=[CAT, {**CAT, "id": 3}]), r"3 and 7 are both named 'cat'"),
}


@pytest.mark.parametrize("damage", FILES)
@pytest.mark.parametrize("opts", [(), SKIP], ids=["all", "skip"])
def test_damaged_files(file, damage, opts):
    """Nothing of them can be skipped."""
    spoil, said = FILES[damage]
    spoil(file)
    with pytest.raises(DatasetError, match=rf"mine\.json.*{said}") as caught:
        fit(file, file, *opts)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


FORMS = {  # of a box, one that is sound in it, and what is said
    "corners": (lambda x, y, w, h: [x, y, x + w, y + h], [40, 30, 60, 44], "like two corners"),
    "normalized": (lambda *box: [v / 64 for v in box], [0, 0, 1, 1], "which looks normalized"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_file_of_another_form_is_bad_as_a_whole(tmp_path, case):
    """Some boxes are inside their image in either form: skipping the others would train on them."""
    (form, sound, said), file = FORMS[case], make_coco(tmp_path, masks=False)
    with changed(file) as coco:
        for annotation in coco["annotations"]:
            annotation["bbox"] = form(*annotation["bbox"])
            del annotation["area"]
        coco["annotations"][1]["bbox"] = sound
    refused(file, said, "There are 7 more")
    with pytest.raises(DatasetError, match="no annotations"):
        fit(file, file, *SKIP)


FINE = {
    "box a pixel over the edge": {"bbox": [48.5, 6, 16.4, 12], "segmentation": []},
    "box of the whole image": {"bbox": [0, 0, WIDTH, HEIGHT], "segmentation": []},
    "box of a pixel in the corner": {"bbox": [0, 0, 1, 1], "segmentation": []},
    "box of text's dot": {"bbox": [30.5, 20.5, 0.4, 0.4], "segmentation": []},
    "iscrowd true": {"iscrowd": True},
    "compressed RLE": rle(RLE),
    "runs": rle([4 * 48 + 6, 12, *[36, 12] * 15, 3072 - (19 * 48 + 18)]),
    "polygon a little over the edge": {"segmentation": polygon(-3, 6, 23, 12)},
    "several polygons": {"segmentation": [*polygon(4, 6, 5, 12), *polygon(10, 6, 10, 12)]},
    "no area": {"area": 0},
    "visible keypoints": {"keypoints": [4.5, 6, 2, 0, 0, 0]},
}


TOLERATED = {
    "bbox without height": {"bbox": [1, 1, 10, 0]},
    "bbox without sides": {"bbox": [0, 0, 0, 0]},
    "bbox over the edge": {"bbox": [50, 6, 16, 12], "segmentation": polygon(50, 6, 14, 12)},
    "a polygon of two points": {"segmentation": [[4, 6, 20, 18], *polygon(4, 6, 16, 12)]},
    "polygons of two points": {"segmentation": [[4, 6, 20, 18]]},
    "polygon odd": {"segmentation": [[4, 6, 20, 6, 20, 18, 4]]},
    "RLE of nothing": rle([HEIGHT * WIDTH]),
}


@pytest.mark.parametrize("case", TOLERATED)
def test_what_detectron2_drops_or_clips_trains_as_there(file, case, caplog):
    with changed(file) as coco:
        coco["annotations"][0].update(TOLERATED[case])
    opts = ["MODEL.MASK_ON", "True", "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN"]
    cfg = fit(file, file, *opts, f"({HEIGHT},)")
    assert "which training drops or clips: 1." in caplog.text
    theirs = load_coco_json(str(file), str(file.parent / "images"), "theirs")
    mapper = DatasetMapper(cfg, is_train=True)
    for ours, other in zip(load_train_dataset(cfg), theirs, strict=True):
        found, expected = mapper(ours)["instances"], mapper(other)["instances"]
        assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)
        assert torch.equal(found.gt_classes, expected.gt_classes)
    used = truth(file)
    assert all(used.annToMask(a).shape == (HEIGHT, WIDTH) for a in used.anns.values())


@pytest.mark.parametrize("case", FINE)
def test_what_is_right_passes(file, case):
    with changed(file) as coco:
        coco["annotations"][0].update(FINE[case])
    coco = read_coco(file)
    assert check_coco(coco, ImageFiles(file.parent / "images")) == (coco, [])
    fit(file, file)
    # pycocotools gets along with what passes.
    used = truth(file)
    for annotation in used.anns.values():
        if "segmentation" in annotation:
            assert used.annToMask(annotation).shape == (HEIGHT, WIDTH)
