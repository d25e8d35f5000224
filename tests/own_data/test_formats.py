"""Annotation formats other than COCO: what is read of each, in numbers worked out by hand, in the
layouts of the tools that write them, and what damage leads to."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import fit, make_coco, truth
from detectron2.data import DatasetCatalog, MetadataCatalog
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


def segmentations(source):
    return [a.get("segmentation") for a in read_coco(source).annotations]


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
VIA = {
    "a.png99": {
        "filename": "a.png",
        "size": 99,
        "regions": [{"shape_attributes": RECT, "region_attributes": {"class": "cat", "id": "7"}}],
    }
}
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
# Files in the layout of a tool, and the source that is found in them. All have the same box.
LAYOUTS = {
    "VOC": ({"Annotations/a.xml": VOC.format("a.png"), "JPEGImages/a.png": None}, "Annotations/"),
    "VOC, Roboflow": ({"train/a.xml": VOC.format("x.jpg"), "train/a.png": None}, "train/"),
    "VOC, lists": (
        {
            "ImageSets/Main/train.txt": "a\n",
            "ImageSets/Main/cat_train.txt": "a 1\n",
            **{"Annotations/a.xml": VOC.format("a.png"), "Annotations/b.xml": "damaged"},
            "JPEGImages/a.png": None,
        },
        "ImageSets/Main/train.txt",
    ),
    "CVAT": (
        {
            "annotations.xml": CVAT.format(
                '<box label="cat" xtl="10" ytl="4" xbr="30.5" ybr="24"/>'
            ),
            **{"images/a.png": None, "images/b.png": None},
        },
        "annotations.xml",
    ),
    "LabelMe": ({"a.json": LABELME, "a.png": None, "b.png": None}, ""),
    "LabelMe, folders": ({"labels/a.json": LABELME, "images/a.png": None}, "labels/"),
    "VIA": (
        {"via.json": {"_via_settings": {}, "_via_img_metadata": VIA}, "a.png": None},
        "via.json",
    ),
    "VIA, exported": ({"via.json": VIA, "images/a.png": None}, "via.json"),
    "VIA, CSV": ({"via.csv": VIA_CSV, "a.png": None}, "via.csv"),
    "Label Studio": ({"project-1.json": STUDIO, "a.png": None}, "project-1.json"),
    "Label Studio, JSON-MIN": (
        {"min.json": [{"image": "/data/upload/a.png", "label": [REGION | SIZE]}], "a.png": None},
        "min.json",
    ),
    "Open Images": (
        {
            "train-annotations-bbox.csv": OPEN_IMAGES + "a,x,/m/1,1,0.125,0.38125,0.1,0.6,0\n",
            "class-descriptions.csv": "/m/1,cat\n/m/2,dog\n",
            "train/a.png": None,
        },
        "train-annotations-bbox.csv",
    ),
    "TensorFlow": (
        {
            "labels.csv": "filename,width,class,xmin,ymin,xmax,ymax\na.png,80,cat,10,4,30.5,24\n",
            "images/a.png": None,
        },
        "labels.csv",
    ),
    "Kaggle": (
        {"x.csv": 'image_id,bbox,label\na,"[10, 4, 20.5, 20]",cat\n', "x/a.png": None},
        "x.csv",
    ),
    "YOLO, Roboflow": (
        {
            **{"data.yaml": YAML, "train/images/a.png": None, "train/labels/a.txt": YOLO_LINE},
            **{"train/images/b.png": None, "README.txt": "Exported"},
        },
        "train/images/",
    ),
    "YOLO, Ultralytics": (
        {
            "set.yaml": "path: ../set\ntrain: [images/train]\nnames: [dog, cat]\n",
            **{"images/train/a.png": None, "labels/train/a.txt": YOLO_LINE},
        },
        "images/train/",
    ),
    "YOLO, no yaml": (
        {"classes.txt": "dog\ncat\n", "images/a.png": None, "labels/a.txt": YOLO_LINE},
        "labels/",
    ),
    "YOLO, CVAT": (
        {
            **{"obj.names": "dog\ncat\n", "obj_train_data/a.png": None},
            **{"obj_train_data/a.txt": YOLO_LINE, "train.txt": "data/obj_train_data/a.png\n"},
        },
        "train.txt",
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_box_is_read_in_every_layout(tmp_path, case):
    files, source = LAYOUTS[case]
    put(tmp_path, files)
    names = find_export(tmp_path)["train"]
    assert names == [f"{tmp_path}/{source}"] and str(Source.parse(names[0])) == names[0]
    boxes = {
        Path(name).name[-5:]: boxes for name, boxes in found(Source.parse(names[0]).file).items()
    }
    ((label, box),) = boxes.pop("a.png")
    assert label == "cat" and box == pytest.approx([10, 4, 20.5, 20], rel=1e-12)
    # Background, where the format says so.
    has_background = case in ("CVAT", "YOLO, Roboflow")
    assert boxes == ({"b.png": []} if has_background else {})
    fit(names[0])
    (record, *_) = DatasetCatalog.get(names[0])
    assert Path(record["file_name"]).samefile(next(tmp_path.rglob("a.png")))
    (annotation,) = truth(names[0]).anns.values()
    assert (
        annotation["area"] == pytest.approx(410)
        and len(MetadataCatalog.get(names[0]).thing_classes) == 1
    )


SQUARE = [10, 4, 30, 4, 30, 24, 10, 24]
RING = [[40, 4], [50, 4], [50, 14]]
PIXELS = np.zeros((HEIGHT, WIDTH), np.uint8)
PIXELS[5:9, 20:26] = PIXELS[7, 24] = 1
PIXELS[6, 22] = 0


def png(pixels):
    written = io.BytesIO()
    Image.fromarray(pixels.astype(bool)).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def runs(values):
    """Lengths of runs, of which the first is of zeros."""
    edges = np.flatnonzero(np.diff(values, prepend=0, append=2))
    return np.diff(edges, prepend=0).tolist()


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


def via(**shape):
    return {
        "a": {
            "filename": "a.png",
            "regions": {"0": {"shape_attributes": shape, "region_attributes": {}}},
        }
    }


PAIRS = list(map(list, zip(SQUARE[::2], SQUARE[1::2], strict=True)))
TWO = {"points": PAIRS, "group_id": 4}, {"points": RING, "group_id": 4, "shape_type": "polygon"}
RING_OF_BOX = [10, 4, 30.5, 4, 30.5, 24]
AXES = zip(enumerate(RING_OF_BOX), "xyxyxy", strict=True)
POINTS = "".join(f"<{a}{i // 2 + 1}>{v}</{a}{i // 2 + 1}>" for (i, v), a in AXES)
FLAT = [float(value) for point in RING for value in point]
GROUP = '<polygon label="cat" group_id="1" points="{}"/>'
GROUP = GROUP.format("10,4;30,4;30,24;10,24") + GROUP.format("40,4;50,4;50,14")
CVAT_MASK = '<mask label="cat" left="19" top="4" width="9" height="6" rle="{}"/>'
CVAT_MASK = CVAT_MASK.format(str(runs(PIXELS[4:10, 19:28].ravel()))[1:-1])
MASKS = {
    "YOLO": (
        "a.txt",
        "0 " + " ".join(str(v / (80, 40)[i % 2]) for i, v in enumerate(SQUARE)),
        [SQUARE],
    ),
    "VOC, Roboflow": (
        "a.xml",
        VOC.format("a.png").replace("</object>", f"<polygon>{POINTS}</polygon></object>"),
        [RING_OF_BOX],
    ),
    "CVAT": (
        "a.xml",
        CVAT.format('<polygon label="cat" points="10.0,4;30,4;30,24;10,24"/>'),
        [SQUARE],
    ),
    "CVAT, group": ("a.xml", CVAT.format(GROUP), [SQUARE, FLAT]),
    "CVAT, mask": ("a.xml", CVAT.format(CVAT_MASK), PIXELS),
    "LabelMe, group": ("a.json", labelme(*TWO), [SQUARE, FLAT]),
    "LabelMe, mask": (
        "a.json",
        labelme(
            {"points": [[19, 4], [27, 9]], "shape_type": "mask", "mask": png(PIXELS[4:10, 19:28])}
        ),
        PIXELS,
    ),
    "VIA": (
        "a.json",
        via(name="polygon", all_points_x=SQUARE[::2], all_points_y=SQUARE[1::2]),
        [SQUARE],
    ),
    "Label Studio": (
        "x.json",
        studio(points=[[12.5, 10], [37.5, 10], [37.5, 60], [12.5, 60]], polygonlabels=["cat"]),
        [SQUARE],
    ),
    "Label Studio, brush": (
        "x.json",
        studio(format="rle", rle=packed(np.repeat(PIXELS.ravel() * 255, 4)), brushlabels=["cat"]),
        PIXELS,
    ),
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


@pytest.mark.parametrize(
    ("file", "content", "area"),
    [
        ("a.json", labelme({"points": [[20, 20], [20, 32]], "shape_type": "circle"}), np.pi * 144),
        ("a.json", via(name="circle", cx=20, cy=20, r=12), np.pi * 144),
        ("a.json", via(name="ellipse", cx=40, cy=20, rx=12, ry=5, theta=np.pi / 2), np.pi * 60),
        ("a.xml", CVAT.format('<ellipse label="cat" cx="40" cy="20" rx="12" ry="5"/>'), np.pi * 60),
        (
            "x.json",
            studio(x=50, y=50, radiusX=15, radiusY=12.5, rotation=90, ellipselabels=["cat"]),
            np.pi * 60,
        ),
    ],
)
def test_a_round_shape_is_a_polygon(tmp_path, file, content, area):
    put(tmp_path, {file: content, "a.png": None, "b.png": None})
    ((ring,),) = segmentations(resolve(str(tmp_path)))
    x, y = np.reshape(ring, (-1, 2)).T
    assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2) == pytest.approx(area, rel=2e-3)
    turned = "theta" in str(content) or "rotation" in str(content)
    assert (np.ptp(x) < np.ptp(y)) == turned or area > np.pi * 100


def test_instance_masks(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:12, 4:24], labels[20:30, 40:45] = 1, 7
    put(tmp_path / "same", {"images/train/a.png": None, "masks/train/a.png": labels})
    put(tmp_path / "one", {"PNGImages/a.png": None, "PedMasks/a_mask.png": labels})
    bowl = {f"{i}/images/{i}.png": None for i in "ab"}
    bowl |= {f"{i}/masks/{n}.png": (labels == n) for i in "ab" for n in (1, 7)}
    put(tmp_path / "bowl/stage1_train", bowl)
    expected = [("object", [4, 2, 20, 10]), ("object", [40, 20, 5, 10])]
    for folder, names in (
        ("one", ["a.png"]),
        ("same", ["a.png"]),
        ("bowl", ["a/images/a.png", "b/images/b.png"]),
    ):
        (source,) = find_export(tmp_path / folder)["train"]
        assert found(Source.parse(source).file) == dict.fromkeys(names, expected)
        assert (mask_util.decode(segmentations(source)[1]) == (labels == 7)).all()


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


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.xml", CVAT.format(BOX.format("") + 2 * BOX.format('rotation="9"')), "2 rotated boxes"),
        ("a.json", labelme(*TWO, {"points": [[1, 2]], "shape_type": "point"}), "1 shapes 'point'"),
        ("a.json", labelme(*TWO), "1 images without an annotation file"),
        ("x.json", studio(**REGION | {"rotation": 3}), "1 rotated boxes"),
        ("a.json", via(name="point", cx=1, cy=1), "1 shapes 'point'"),
        ("c.txt", "0 .5 .5 .5 .5", "1 label files without an image"),
    ],
)
def test_what_is_left_out_is_said(tmp_path, file, content, said, caplog):
    put(
        tmp_path,
        {
            file: content,
            "a.png": None,
            "b.png": None,
            **({"a.txt": YOLO_LINE} if file == "c.txt" else {}),
        },
    )
    read_coco(resolve(str(tmp_path)))
    assert f"{said} are left out" in caplog.text


LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
LAUGHS = f'<!DOCTYPE annotations [<!ENTITY l0 "ha">{LAUGHS}]><annotations>&l9;</annotations>'


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.txt", "0 .5 .5 .5", r"a\.txt: line 1 .*4 numbers"),
        ("a.txt", "0 .5 .5 .5 .5\n\n0 .5 .5 .5 1.2.3", r"a\.txt: line 3 .*1\.2\.3"),
        ("a.txt", "0.5 .5 .5 .5 .5", r"a\.txt: line 1 .*class is 0\.5"),
        ("a.xml", LAUGHS, r"a\.xml is not valid XML"),
        ("a.xml", VOC.format("a.png")[:-20], r"a\.xml is not valid XML"),
        ("a.xml", VOC.format("a.png").replace("30.5", "x"), r"a\.xml cannot be used: .*'x'"),
        ("a.xml", CVAT.format('<polygon label="cat" points="1,2;x"/>'), r"a\.xml: image 'a\.png' "),
        ("a.xml", "<annotations><track/></annotations>", r"a\.xml is a CVAT file of a video"),
        ("a.json", labelme({"points": [[1, "x"]]}), r"a\.json: shapes\[0\] cannot be used: .*'x'"),
        ("a.json", via(name="rect", x=1), r"a\.json: 'a\.png', region 0 .*'y' is missing"),
        ("a.json", studio(x=1, y="z", rectanglelabels=["a"]), r"a\.json: task 3 .*'z'"),
        ("a.csv", "image,x1,y1,x2,y2\na.png,1,2,3,oops\n", r"a\.csv: row 2 .*'oops'"),
        ("a.csv", "image,label\na.png,cat\n", r"a\.csv: its columns are image, label\. Needed"),
        ("data.yaml", "train: [x\nnames: []", r"data\.yaml is not valid YAML"),
        ("data.yaml", "train: x\nnames: [a]", r"data\.yaml: train names x, which does not exist"),
        ("a.bin", "", r"found no annotations, but 2 \.bin, 1 \.png\. Needed are COCO, LabelMe"),
    ],
)
def test_damage_is_one_error(tmp_path, file, content, said):
    put(tmp_path, {file: content, "a.png": None, "b.bin": ""})
    source = tmp_path / file if file[-3:] in ("csv", "xml", "json") else tmp_path
    with pytest.raises(DatasetError, match=said) as raised:
        for name in find_export(source)["train"]:
            read_coco(name)
    assert "\n" not in str(raised.value)


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


def test_several_attributes_of_via_could_be_the_class(tmp_path):
    regions = [{"shape_attributes": RECT, "region_attributes": {"colour": "x", "kind": "y"}}]
    put(tmp_path, {"a.json": {"a": {"filename": "a.png", "regions": regions}}, "a.png": None})
    with pytest.raises(DatasetError, match=r"1 regions have the attributes 'colour' of 1, 'kind'"):
        read_coco(tmp_path / "a.json")


def test_two_attributes_of_via_that_agree_are_one_class(tmp_path):
    both = [{"region_attributes": {"inseto": c, "insect": c}} for c in "xyx"]
    regions = [{"shape_attributes": RECT, **values} for values in both]
    put(tmp_path, {"a.json": {"a": {"filename": "a.png", "regions": regions}}, "a.png": None})
    coco = read_coco(tmp_path / "a.json")
    assert [coco.class_names[a["category_id"]] for a in coco.annotations] == ["x", "y", "x"]


def voc_with(lists):
    files = {f"ImageSets/Main/{name}": text for name, text in lists.items()}
    return {"Annotations/a.xml": VOC.format("a.png"), "JPEGImages/a.png": None, **files}


YOLO_FILES = {"a.png": None, "a.txt": YOLO_LINE}
SEMICOLONS = "filename;class;xmin;ymin;xmax;ymax;Split\na.png;cat;10;4;30.5;24;{}\n"
SPLIT_CSV = SEMICOLONS.format("train") + SEMICOLONS.format("test").splitlines()[1]
CHECKBOX = {"shape_attributes": RECT, "region_attributes": {"class": {"a": True, "b": True}}}
CVAT_SUBSETS = CVAT.format("").replace("id=", 'subset="x" id=', 1).replace('"1"', '"1" subset="y"')


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (voc_with({"trainval.txt": "a", "val.txt": "a"}), "ImageSets/Main/trainval.txt"),
        (voc_with({"Train.txt": "a.JPG"}), "ImageSets/Main/Train.txt"),
        (voc_with({"default.txt": "a", "cat_default.txt": "a 1"}), "ImageSets/Main/default.txt"),
        ({"a.XML": VOC.format("a.png"), "._a.xml": "x", "a.png": None}, ""),
        ({"a.json": LABELME, "._a.json": "x", "a.png": None}, ""),
        ({**YOLO_FILES, "._a.txt": "x", "._data.yaml": "\0", "classes.txt": "dog\ncat\n\n"}, ""),
        ({"a.csv": SEMICOLONS.format(""), "a.png": None}, "a.csv"),
        ({"a.csv": SEMICOLONS.format("").replace(";", "\t"), "a.png": None}, "a.csv"),
    ],
)
def test_layouts_of_newcomers(tmp_path, files, source):
    put(tmp_path, files)
    splits = find_export(tmp_path)
    assert splits == {"train": [f"{tmp_path}/{source}"]}
    ((name, objects),) = found(Source.parse(splits["train"][0]).file).items()
    assert name.endswith("a.png") and objects == [("cat", pytest.approx([10, 4, 20.5, 20]))]


def test_masks_are_never_their_own_images(tmp_path):
    labels = np.eye(HEIGHT, WIDTH, dtype=np.uint8)
    put(tmp_path, {"images/a.jpg": None, "masks/a.png": labels, "masks/b.png": labels})
    assert list(found(tmp_path / "masks")) == ["a.jpg", "b"]


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


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (voc_with({"train.txt": "a\nb"}), "1 listed images without an XML file are left out"),
        (voc_with({"test.txt": "a"}), "Main: none of its lists can be used to train"),
        ({"a.csv": SPLIT_CSV, "a.png": None}, "its splits, test, train, are not used"),
        ({"a.xml": CVAT_SUBSETS, "a.png": None, "b.png": None}, "its splits, x, y, are not used"),
        ({**YOLO_FILES, "data.yaml": "nc: 2"}, "data.yaml has no names"),
        ({**YOLO_FILES, "classes.txt": "a\n\nb"}, "classes.txt: line 2 is blank"),
        ({"a.zip": ""}, "1 .zip (unzip it)"),
        ({"images/a.png": None, "masks/a.jpg": None}, "these must be lossless, such as PNG"),
        (
            {"a.json": {"a": {"filename": "a.png", "regions": [CHECKBOX]}}, "a.png": None},
            "its class is a and b, but needs one",
        ),
    ],
)
def test_what_a_newcomer_is_told(tmp_path, files, said, caplog):
    put(tmp_path, files)
    try:
        read_coco(find_export(tmp_path)["train"][0])
    except DatasetError as error:
        assert said in str(error)
    else:
        assert said in caplog.text
