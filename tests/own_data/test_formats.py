"""Annotation formats other than COCO: what is read of each, in numbers worked out by hand, in the
layouts of the tools that write them, and what damage leads to."""

import base64
import io
import json
import re
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from coco_files import make_coco
from PIL import Image
from pycocotools import mask as mask_util

from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data.arguments import find_export, resolve
from gnws_d2.projects.own_data.check import check_coco
from gnws_d2.projects.own_data.coco_file import read_coco
from gnws_d2.projects.own_data.formats.label_studio import decode
from gnws_d2.projects.own_data.source import Source

WIDTH, HEIGHT = 80, 40


def put(folder, files):
    """Write files by path: text, JSON, or images as arrays or None."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None or isinstance(content, np.ndarray):
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8) if content is None else content
            Image.fromarray(pixels).save(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def found(source):
    """The classes and boxes of each image."""
    coco = read_coco(source)
    names = {image["id"]: image["file_name"] for image in coco.images}
    made = {name: [] for name in names.values()}
    for annotation in coco.annotations:
        label = coco.class_names[annotation["category_id"]]
        made[names[annotation["image_id"]]].append((label, annotation["bbox"]))
    return made


VOC = """<annotation><filename>{}</filename><size><width>80</width><height>40</height></size>
<object><name>cat</name><difficult>1</difficult><part><name>head</name><bndbox><xmin>1</xmin>
</bndbox></part><bndbox><xmax>30.5</xmax><xmin>10</xmin><ymin>4</ymin><ymax>24</ymax></bndbox>
</object></annotation>"""
CVAT = """<annotations><meta><task><labels><label><name>dog</name></label><label><name>cat</name>
</label></labels></task></meta><image id="0" name="a.png" width="80" height="40">{}</image>
<image id="1" name="b.png" width="80" height="40"/></annotations>"""
LABELME = {
    "version": "5.0.1",
    "shapes": [{"label": "cat", "points": [[30.5, 24], [10, 4]], "shape_type": "rectangle"}],
    "imagePath": "..\\else\\a.png",
    **{"imageHeight": HEIGHT, "imageWidth": WIDTH},
}
RECT = {"name": "rect", "x": 10, "y": 4, "width": 20.5, "height": 20}


def via(*attributes, shape=RECT):
    regions = [{"shape_attributes": shape, "region_attributes": a} for a in attributes]
    return {"a.png99": {"filename": "a.png", "size": 99, "regions": regions}}


VIA = via({"class": "cat", "id": "7"})
VIA_CSV = """filename,region_id,region_shape_attributes,region_attributes
a.png,0,"{""name"":""rect"",""x"":10,""y"":4,""width"":20.5,
""height"":20}","{""class"":""cat"",""b"":undefined}"
"""
REGION = {"x": 12.5, "y": 10, "width": 25.625, "height": 50, "rotation": 0}
REGION |= {"rectanglelabels": ["cat"]}
SIZE = {"original_width": WIDTH, "original_height": HEIGHT}
RESULT = {"type": "rectanglelabels", "to_name": "pic", "value": REGION, **SIZE}
STUDIO = [
    {
        "id": 3,
        "data": {"pic": "/data/upload/1/0a1b2c3d-a.png", "text": "b.png"},
        "annotations": [
            {"result": [], "created_at": "2024-01-01", "was_cancelled": False},
            {"result": [RESULT, {"type": "relation"}], "created_at": "2024-01-02"},
            {"result": [], "created_at": "2024-01-03", "was_cancelled": True},
        ],
        "predictions": [{"result": [RESULT, RESULT]}],
    }
]
OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
YAML = "path: /content/set\ntrain: ../train/images\nval: ../valid/images\nnames: {0: dog, 1: cat}\n"
YOLO_LINE = "1 0.253125 0.35 0.25625 0.5\n"
SEMICOLONS = "filename;class;xmin;ymin;xmax;ymax;Split\na.png;cat;10;4;30.5;24;{}\n"
CVAT_BOX = CVAT.format('<box label="cat" xtl="10" ytl="4" xbr="30.5" ybr="24"/>')


def voc(**lists):
    files = {f"ImageSets/Main/{name}.txt": text for name, text in lists.items()}
    return {"Annotations/a.xml": VOC.format("a.png"), "JPEGImages/a.png": None, **files}


# By the tool and the source that is found, files in its layout. All have the same box in a.png,
# which need not be named; b.png is background.
LAYOUTS = {
    "VOC: Annotations/": voc(),
    "VOC, Roboflow: train/": {"train/a.xml": VOC.format("x.jpg"), "train/a.png": None},
    "VOC, lists: ImageSets/Main/train.txt": {
        **voc(train="a\n", cat_train="a 1\n"),
        "Annotations/b.xml": "damaged",
    },
    "VOC, trainval: ImageSets/Main/trainval.txt": voc(trainval="a", val="a"),
    "VOC, suffixes: ImageSets/Main/Train.txt": voc(Train="a.JPG"),
    "VOC, CVAT: ImageSets/Main/default.txt": voc(default="a", cat_default="a 1"),
    "VOC, macOS: ": {"a.XML": VOC.format("a.png"), "._a.xml": "x"},
    "CVAT: annotations.xml": {
        "annotations.xml": CVAT_BOX,
        "images/a.png": None,
        "images/b.png": None,
    },
    "LabelMe: ": {"a.json": LABELME, "._a.json": "x", "a.png": None, "c.png": None},
    "LabelMe, folders: labels/": {"labels/a.json": LABELME, "images/a.png": None},
    "VIA: via.json": {"via.json": {"_via_settings": {}, "_via_img_metadata": VIA}},
    "VIA, exported: via.json": {"via.json": VIA, "images/a.png": None},
    "VIA, CSV: via.csv": {"via.csv": VIA_CSV},
    "Label Studio: project-1.json": {"project-1.json": STUDIO},
    "Label Studio, JSON-MIN: min.json": {
        "min.json": [{"image": "/data/upload/a.png", "label": [REGION | SIZE]}]
    },
    "Open Images: train-annotations-bbox.csv": {
        "train-annotations-bbox.csv": OPEN_IMAGES + "a,x,/m/1,1,0.125,0.38125,0.1,0.6,0\n",
        **{"class-descriptions.csv": "/m/1,cat\n/m/2,dog\n", "train/a.png": None},
    },
    "TensorFlow: x.csv": {
        "x.csv": "filename,width,class,xmin,ymin,xmax,ymax\na.png,80,cat,10,4,30.5,24\n"
    },
    "Kaggle: x.csv": {"x.csv": 'image_id,bbox,label\na,"[10, 4, 20.5, 20]",cat\n', "x/a.png": None},
    "CSV, semicolons: a.csv": {"a.csv": SEMICOLONS.format("")},
    "CSV, tabs: a.csv": {"a.csv": SEMICOLONS.format("").replace(";", "\t")},
    "YOLO, Roboflow: train/images/": {
        **{"data.yaml": YAML, "train/images/a.png": None, "train/labels/a.txt": YOLO_LINE},
        **{"train/images/b.png": None, "README.txt": "Exported"},
    },
    "YOLO, Ultralytics: images/train/": {
        "environment.yml": "a: [",
        "set.yaml": "path: ../set\ntrain: [images/train]\nnames: [dog, cat]\n",
        **{"images/train/a.png": None, "labels/train/a.txt": YOLO_LINE},
    },
    "YOLO, no yaml: labels/": {
        "classes.txt": "dog\ncat\n",
        "environment.yml": "a: [",
        "images/a.png": None,
        "labels/a.txt": YOLO_LINE,
    },
    "YOLO, macOS: ": {
        "a.txt": YOLO_LINE,
        "._a.txt": "x",
        "._data.yaml": "\0",
        "classes.txt": "dog\ncat\n\n",
    },
    "YOLO, CVAT: train.txt": {
        **{"obj.names": "dog\ncat\n", "obj_train_data/a.png": None},
        **{"obj_train_data/a.txt": YOLO_LINE, "train.txt": "data/obj_train_data/a.png\n"},
    },
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_box_is_read_in_every_layout(tmp_path, case):
    tool, source = case.split(": ")
    files = LAYOUTS[case]
    put(tmp_path, files if any("a.png" in file for file in files) else {**files, "a.png": None})
    (name,) = find_export(tmp_path)["train"]
    assert name == f"{tmp_path}/{source}" and str(Source.parse(name)) == name
    boxes = found(name)
    images = Source.parse(name).images(list(boxes))
    paths = {images.path(listed).name: objects for listed, objects in boxes.items()}
    assert all(images.path(listed).is_file() for listed in boxes)
    ((label, box),) = paths.pop("a.png")
    assert label == "cat" and box == pytest.approx([10, 4, 20.5, 20], rel=1e-12)
    # Background, where the format says so.
    assert paths == ({"b.png": []} if tool in ("CVAT", "YOLO, Roboflow") else {})


SQUARE = [10, 4, 30, 4, 30, 24, 10, 24]
RING = [[40, 4], [50, 4], [50, 14]]
PIXELS = np.zeros((HEIGHT, WIDTH), np.uint8)
PIXELS[5:9, 20:26] = PIXELS[7, 24] = 1
PIXELS[6, 22] = 0


def png(pixels):
    written = io.BytesIO()
    Image.fromarray(pixels.astype(bool)).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def packed(values, widths=(3, 4, 7, 15), as_runs=True):
    """Bytes in the code of Label Studio's brushes, written from its description."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    at = 0
    while at < len(values):
        end = at + 1
        while end < len(values) and (values[end] == values[at]) and end - at < 1 << 14:
            end += 1
        is_run = as_runs or end - at > 8
        end = end if is_run else min(at + 3, len(values))
        which = next(i for i, width in enumerate(widths) if end - at - 1 < 1 << width)
        bits += f"{int(is_run)}{which:02b}{end - at - 1:0{widths[which]}b}"
        bits += "".join(f"{value:08b}" for value in values[at : at + 1 if is_run else end])
        at = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("as_runs", [True, False])
def test_the_run_length_code_of_brushes(as_runs):
    values = np.repeat(np.random.default_rng(0).integers(0, 256, 300), 20 * [1, 2, 40] * 5)
    assert decode(packed(values, as_runs=as_runs), len(values)).tolist() == values.tolist()
    for damaged, count in ((packed(values)[:-9], len(values)), (packed(values), len(values) - 1)):
        with pytest.raises(ValueError, match="RLE"):
            decode(damaged, count)


def labelme(*shapes):
    return {**LABELME, "shapes": [{"label": "cat", "group_id": None, **shape} for shape in shapes]}


def studio(**value):
    result = {"to_name": "pic", "value": value, **SIZE}
    return [{**STUDIO[0], "annotations": [{"result": [result]}]}]


PAIRS = np.reshape(SQUARE, (4, 2)).tolist()
TWO = {"points": PAIRS, "group_id": 4}, {"points": RING, "group_id": 4, "shape_type": "polygon"}
FLAT = [float(value) for point in RING for value in point]
HALF = [10, 4, 30.5, 4, 30.5, 24]
VOC_RING = "<polygon><x1>10</x1><y1>4</y1><x2>30.5</x2><y2>4</y2><x3>30.5</x3><y3>24</y3></polygon>"
VOC_RING += "</object>"
CVAT_RING = '<polygon label="cat" group_id="{}" points="10.0,4;30,4;30,24;10,24"/>'
GROUP = CVAT_RING.format(1) + '<polygon label="cat" group_id="1" points="40,4;50,4;50,14"/>'
CVAT_MASK = '<mask label="cat" left="19" top="4" width="9" height="6" rle="{}"/>'
RUNS = [len([*run]) for _, run in groupby(PIXELS[4:10, 19:28].flat)]  # the first is of zeros
CVAT_MASK = CVAT_MASK.format(str(RUNS)[1:-1])
MASK = {"points": [[19, 4], [27, 9]], "shape_type": "mask", "mask": png(PIXELS[4:10, 19:28])}
VIA_RING = {"name": "polygon", "all_points_x": SQUARE[::2], "all_points_y": SQUARE[1::2]}
PERCENT = [[12.5, 10], [37.5, 10], [37.5, 60], [12.5, 60]]
BRUSH = {"format": "rle", "rle": packed(np.repeat(PIXELS.ravel() * 255, 4))}
MASKS = {
    "YOLO": ("a.txt", "0 .125 .1 .375 .1 .375 .6 .125 .6", [SQUARE]),
    "VOC, Roboflow": ("a.xml", VOC.format("a.png").replace("</object>", VOC_RING), [HALF]),
    "CVAT": ("a.xml", CVAT.format(CVAT_RING.format(0)), [SQUARE]),
    "CVAT, group": ("a.xml", CVAT.format(GROUP), [SQUARE, FLAT]),
    "CVAT, mask": ("a.xml", CVAT.format(CVAT_MASK), PIXELS),
    "LabelMe, group": ("a.json", labelme(*TWO), [SQUARE, FLAT]),
    "LabelMe, mask": ("a.json", labelme(MASK), PIXELS),
    "VIA": ("a.json", via({}, shape=VIA_RING), [SQUARE]),
    "Label Studio": ("x.json", studio(points=PERCENT, polygonlabels=["cat"]), [SQUARE]),
    "Label Studio, brush": ("x.json", studio(**BRUSH, brushlabels=["cat"]), PIXELS),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_is_read(tmp_path, case):
    file, content, expected = MASKS[case]
    put(tmp_path, {file: content, "a.png": None, "b.png": None})
    coco = read_coco(resolve(str(tmp_path)))
    (annotation,) = coco.annotations
    mask, box = annotation["segmentation"], annotation["bbox"]
    if isinstance(expected, np.ndarray):
        assert (mask_util.decode(mask) == expected).all() and box == [20, 5, 6, 4]
    else:
        assert [pytest.approx(ring) for ring in expected] == mask
        points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in expected])
        corners = [*points.min(0), *points.max(0) - points.min(0)]
        assert box == pytest.approx(corners)
    assert not check_coco(coco, Source(Path(coco.file)).images(coco.file_names))[1]


CIRCLE = {"points": [[20, 20], [20, 32]], "shape_type": "circle"}
ELLIPSE = {"name": "ellipse", "cx": 40, "cy": 20, "rx": 12, "ry": 5}
IN_PERCENT = {"x": 50, "y": 50, "radiusX": 15, "radiusY": 12.5, "ellipselabels": ["cat"]}


@pytest.mark.parametrize(
    ("content", "height", "width"),
    [
        (labelme(CIRCLE), 24, 24),
        (via({}, shape={"name": "circle", "cx": 20, "cy": 20, "r": 12}), 24, 24),
        (via({}, shape=ELLIPSE | {"theta": np.pi / 2}), 24, 10),
        (CVAT.format('<ellipse label="cat" cx="40" cy="20" rx="12" ry="5"/>'), 10, 24),
        (studio(**IN_PERCENT, rotation=90), 24, 10),
    ],
)
def test_a_round_shape_is_a_polygon(tmp_path, content, height, width):
    file = "a.xml" if isinstance(content, str) else "a.json"
    put(tmp_path, {file: content, "a.png": None, "b.png": None})
    ((ring,),) = (a["segmentation"] for a in read_coco(resolve(str(tmp_path))).annotations)
    x, y = np.reshape(ring, (-1, 2)).T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)
    assert area == pytest.approx(np.pi / 4 * height * width, rel=2e-3)
    assert (np.ptp(x), np.ptp(y)) == pytest.approx((width, height), rel=2e-3)


def test_instance_masks(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:12, 4:24], labels[20:30, 40:45] = 1, 7
    put(tmp_path / "same", {"images/train/a.png": None, "masks/train/a.png": labels})
    put(tmp_path / "one", {"PNGImages/a.png": None, "PedMasks/a_mask.png": labels})
    bowl = {f"{i}/images/{i}.png": None for i in "ab"}
    bowl |= {f"{i}/masks/{n}.png": (labels == n) for i in "ab" for n in (1, 7)}
    put(tmp_path / "bowl/stage1_train", bowl)
    put(tmp_path / "jpeg", {"images/a.jpg": None, "masks/a.png": labels, "masks/b.png": labels})
    expected = [("object", [4, 2, 20, 10]), ("object", [40, 20, 5, 10])]
    for folder, names in (
        ("one", ["a.png"]),
        ("same", ["a.png"]),
        ("bowl", ["a/images/a.png", "b/images/b.png"]),
        ("jpeg", ["a.jpg", "b"]),  # a mask is never its own image
    ):
        (source,) = find_export(tmp_path / folder)["train"]
        assert found(Source.parse(source).file) == dict.fromkeys(names, expected)
        mask = read_coco(source).annotations[1]["segmentation"]
        assert (mask_util.decode(mask) == (labels == 7)).all()


@pytest.mark.parametrize(
    ("flip", "names"), [([0, 2, 1], ["point_0", "left_1", "right_1"]), ([0, 1, 2], ["0", "1", "2"])]
)
def test_yolo_keypoints(tmp_path, flip, names):
    yaml = f"train: images\nnames: [cat]\nkpt_shape: [3, 3]\nflip_idx: {flip}\n"
    line = "0 0.5 0.5 0.25 0.5 0.5 0.25 2 0.25 0.5 1 0 0 0\n"
    put(tmp_path, {"data.yaml": yaml, "images/a.png": None, "labels/a.txt": line})
    coco = read_coco(find_export(tmp_path / "data.yaml")["train"][0])
    assert coco.categories == [{"id": 0, "name": "cat", "keypoints": names}]
    assert coco.annotations[0]["keypoints"] == [40, 10, 2, 20, 20, 1, 0, 0, 0]
    assert coco.annotations[0]["bbox"] == [30, 10, 20, 20]


BOX = '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9" {}/>'
LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
LAUGHS = f'<!DOCTYPE annotations [<!ENTITY l0 "ha">{LAUGHS}]><annotations>&l9;</annotations>'
SPLIT_CSV = SEMICOLONS.format("train") + SEMICOLONS.format("test").splitlines()[1]
SUBSETS = CVAT.format("").replace("id=", 'subset="x" id=', 1).replace('"1"', '"1" subset="y"')
YOLO = {"a.png": None, "a.txt": YOLO_LINE}
# Files, of which one alone is the source, and what is said of them.
TOLD = [
    ({"a.xml": CVAT.format(BOX.format('rotation="9"') * 2)}, "2 rotated boxes are left out"),
    (
        {"a.json": labelme(*TWO, {"points": [[1, 2]], "shape_type": "point"})},
        "1 shapes 'point' are",
    ),
    ({"a.json": labelme(*TWO), "b.png": None}, "1 images without an annotation file are left out"),
    ({"a.json": studio(**REGION | {"rotation": 3})}, "1 rotated boxes are left out"),
    ({"a.json": via({}, shape={"name": "point"})}, "1 shapes 'point' are left out"),
    ({**YOLO, "c.txt": YOLO_LINE}, "1 label files without an image are left out"),
    (voc(train="a\nb"), "1 listed images without an XML file are left out"),
    (voc(test="a"), "Main: none of its lists can be used to train"),
    ({"a.csv": SPLIT_CSV}, "its splits, test, train, are not used"),
    ({"a.xml": SUBSETS}, "its splits, x, y, are not used"),
    ({**YOLO, "data.yaml": "nc: 2"}, "data.yaml has no names"),
    # Errors.
    ({**YOLO, "classes.txt": "a\n\nb"}, r"classes\.txt: line 2 is blank"),
    ({"a.txt": "0 .5 .5 .5", "b.txt": YOLO_LINE}, r"a\.txt: line 1 .*4 numbers"),
    ({"a.txt": "0 .5 .5 .5 .5\n\n0", "b.png": None}, r"a\.txt: line 3 .*1 numbers"),
    ({"a.txt": "0 .5 .5 .5 .5\n\n0 .5 .5 .5 1.2.3", "b.png": None}, r"a\.txt: line 3 .*1\.2\.3"),
    ({"a.txt": "0.5 .5 .5 .5 .5", "b.png": None}, r"a\.txt: line 1 .*class is 0\.5"),
    ({"a.xml": LAUGHS}, r"a\.xml is not valid XML"),
    ({"a.xml": VOC.format("a.png")[:-20]}, r"a\.xml is not valid XML"),
    ({"a.xml": VOC.format("a.png").replace("30.5", "x")}, r"a\.xml cannot be used: .*'x'"),
    ({"a.xml": CVAT.format('<polygon label="cat" points="1,2;x"/>')}, r"a\.xml: image 'a\.png' "),
    ({"a.xml": "<annotations><track/></annotations>"}, r"a\.xml is a CVAT file of a video"),
    ({"a.json": labelme({"points": [[1, "x"]]})}, r"a\.json: shapes\[0\] cannot be used: .*'x'"),
    ({"a.json": via({}, shape={"name": "rect", "x": 1})}, r"'a\.png', region 0 .*'y' is missing"),
    ({"a.json": via({"class": {"a": True, "b": True}})}, "its class is a and b, but needs one"),
    ({"a.json": via({"colour": "x", "kind": "y"})}, r"1 regions have the .*'colour' of 1, 'kind'"),
    ({"a.json": studio(x=1, y="z", rectanglelabels=["a"])}, r"a\.json: task 3 .*'z'"),
    ({"a.csv": "image,x1,y1,x2,y2\na.png,1,2,3,oops\n"}, r"a\.csv: row 2 .*'oops'"),
    ({"a.csv": "image,label\na.png,cat\n"}, r"a\.csv: its columns are image, label\. Needed"),
    ({"data.yaml": "train: [x\nnames: []", "b": ""}, r"data\.yaml is not valid YAML"),
    ({"data.yaml": "train: x\nnames: [a]"}, r"data\.yaml: train names x, which does not exist"),
    (
        {"a.bin": "", "b.bin": ""},
        r"no annotations, but 2 \.bin, 1 \.png\. Needed are COCO, LabelMe",
    ),
    ({"a.zip": "", "b": ""}, r"1 \.zip \(unzip it\)"),
    ({"images/a.png": None, "masks/a.jpg": None}, "these must be lossless, such as PNG"),
]


@pytest.mark.parametrize(("files", "said"), TOLD)
def test_what_is_said(tmp_path, files, said, caplog):
    """What is left out in a warning, damage in one error."""
    put(tmp_path, {"a.png": None, **files})
    try:
        for name in find_export(tmp_path / next(iter(files)) if len(files) == 1 else tmp_path)[
            "train"
        ]:
            read_coco(name)
    except DatasetError as error:
        assert re.search(said, str(error)) and "\n" not in str(error)
    else:
        assert re.search(said, caplog.text)


def test_what_is_wrong_in_one_annotation_is_left_to_the_check(tmp_path):
    lines = "7 .5 .5 .5 .5\n0 nan .5 .5 .5\n0 .5 .5 .5 .5\n0 5 5 .5 .5\n"
    put(tmp_path, {"classes.txt": "cat", "a.png": None, "a.txt": lines, "b.png": "", "b.txt": ""})
    coco = read_coco(tmp_path)
    sound, problems = check_coco(coco, Source(tmp_path).images(coco.file_names))
    assert [a["id"] for a in sound.annotations] == [3]
    reasons = " ".join(problem.reason for problem in problems)
    for said in ("b.png", "its category_id, 7", "nan", "outside its image"):
        assert said in reasons


def test_coco_comes_first_then_the_format_with_most_annotations(tmp_path):
    put(tmp_path, {"a.txt": YOLO_LINE, "b.txt": "", "a.xml": VOC.format("a.png"), "a.png": None})
    assert read_coco(find_export(tmp_path)["train"][0]).format == "YOLO"
    file = make_coco(tmp_path)
    assert find_export(tmp_path) == {"train": [str(file)]}
    file.write_text(json.dumps({"categories": []}))  # such as notes.json of Label Studio
    assert read_coco(find_export(tmp_path)["train"][0]).format == "YOLO"


def test_two_images_of_one_name_in_via_are_not_one(tmp_path):
    put(tmp_path, {"a.json": {**VIA, "a.png98": VIA["a.png99"]}, "a.png": None})
    coco = read_coco(tmp_path / "a.json")
    _, problems = check_coco(coco, Source(tmp_path / "a.json").images(coco.file_names))
    assert len(coco.annotations) == 2 and "the file is listed 2 times" in problems[0].reason


def test_two_attributes_of_via_that_agree_are_one_class(tmp_path):
    both = ({"inseto": name, "insect": name} for name in "xyx")
    put(tmp_path, {"a.json": via(*both), "a.png": None})
    coco = read_coco(tmp_path / "a.json")
    assert [coco.class_names[a["category_id"]] for a in coco.annotations] == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ({"in/data.yaml": "nc: 2\nnames: [1, no]"}, ["1", "no"]),
        ({"data.yaml": "path: C:\\x\ntrain: in\\images\nnames: [on, off]"}, ["on", "off"]),
        ({"other.yaml": "names: [a, b]"}, ["0", "1"]),
        ({"in/classes.txt": "a\nb"}, ["a", "b"]),
        ({"classes.txt": "a\nb"}, ["0", "1"]),
    ],
)
def test_only_files_of_the_data_set_name_the_classes_of_yolo(tmp_path, files, classes):
    put(tmp_path, {"in/images/a.png": None, "in/labels/a.txt": YOLO_LINE, **files})
    coco = read_coco(tmp_path / "in/images")
    assert [category["name"] for category in coco.categories] == classes
