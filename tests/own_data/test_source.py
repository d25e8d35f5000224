"""Dataset names that are COCO files, and exports of annotation tools found by their folders."""

import os
import random
import shutil
from pathlib import Path

import pytest
from coco_files import changed, fit, make_coco
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

import gnws_d2
from gnws.arguments import parse
from gnws_d2.errors import DatasetError
from gnws_d2.projects.own_data import data_opts, data_splits, is_source
from gnws_d2.projects.own_data.arguments import find_export, resolve
from gnws_d2.projects.own_data.source import Source, split_names


def arguments(*words, eval_only=False):
    args = parse("train", words)
    return data_opts(args, data_splits(args), eval_only=eval_only)


def named(*words):
    """The datasets to train on, to validate on and to test on."""
    datasets = gnws_d2.load_config("", arguments(*words)).DATASETS
    return datasets.TRAIN, datasets.TEST, datasets.FINAL_TEST


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.json", Source(Path("a/b.json"))),
        ("b.json=/images", Source(Path("b.json"), Path("/images"))),
        ("b.json#val", Source(Path("b.json"), None, "val")),
        ("x=1/b.json=im#ages#train", Source(Path("x=1/b.json"), Path("im#ages"), "train")),
        ("B.JSON", Source(Path("B.JSON"))),
        ("a/b.xml#train", Source(Path("a/b.xml"), None, "train")),
        ("x.csv=images", Source(Path("x.csv"), Path("images"))),
        ("a/labels/=a/b#val", Source(Path("a/labels"), Path("a/b"), "val")),
        ("Main/train.txt", Source(Path("Main/train.txt"))),
        *((name, None) for name in ("coco_2017_train", "digits_train", "mine", "mine#train", "")),
    ],
)
def test_a_name_is_parsed_and_written(name, expected):
    assert Source.parse(name) == expected and is_source(name) == (expected is not None)
    assert expected is None or str(expected) == name


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_coco(tmp_path)
    assert resolve("mine.json=images#val") == f"{tmp_path}/mine.json={tmp_path}/images#val"
    assert resolve("digits_train") == "digits_train"
    assert resolve(".") == f"{tmp_path}/mine.json"
    with pytest.raises(DatasetError, match=r"nothing\.json does not exist"):
        resolve("nothing.json")
    with pytest.raises(DatasetError, match=r"'nothing' is neither a registered dataset nor a COCO"):
        resolve("nothing")


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("mine.json", "."),
        ("mine.json", "images"),
        ("annotations/mine.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_val.json", "images/val"),
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_Validation.json", "valid"),
        ("labels/mine.json", "."),
        ("train/_annotations.coco.json", "train"),  # Roboflow's
    ],
)
def test_images_are_found_beside_the_file(tmp_path, file, images):
    name = make_coco(tmp_path, file, image_folder=images)
    if images == "images":  # a folder with a few other images is not taken
        shutil.copy(tmp_path / "images/0.png", tmp_path / "0.png")
    names = [f"{number}.png" for number in range(4)]
    assert Source(name).images(names).folder.samefile(tmp_path / images)


def test_images_that_are_nowhere(tmp_path):
    file = make_coco(tmp_path, image_folder="elsewhere")
    with pytest.raises(DatasetError, match=r"such as '0\.png', are in none of .*=.*elsewhere\."):
        fit(file)
    fit(f"{file}={tmp_path}/elsewhere")


# The file_name of an image, and where the image is beside the annotation file.
OTHER_NAMES = {
    "Windows": ("images\\{}.png", "images/{}.png"),
    "Windows, another computer": ("C:\\Users\\me\\set\\images\\{}.png", "images/{}.png"),
    "letter case": ("Images/A{}.PNG", "images/a{}.png"),
    "URL": ("https://host/b/a%20b{}.png?size=1&v=2", "images/a b{}.png"),
    "file address": ("file:///home/me/x/{}.png", "{}.png"),
    "spaces on disk": ("a b{}.png", "images/a%20b{}.png"),
    "NFD": ("a\u0308{}.png", "images/\u00e4{}.png"),
    "NFC": ("\u00e4{}.png", "images/a\u0308{}.png"),
    "folder": ("data/{}.png", "images/{}.png"),
    "dot": ("./{}.png", "images/{}.png"),
    "absolute": ("/mnt/else/train/{}.png", "images/train/{}.png"),
    "suffix": ("{}.jpg", "images/{}.JPEG"),
    "FiftyOne": ("{}.png", "data/{}.png"),
    "Label Studio's upload": ("/data/upload/1/0a1b2c3d-{}.png", "images/{}.png"),
    "Label Studio's export": ("/data/upload/1/0a1b2c3d-{}.png", "images/0a1b2c3d-{}.png"),
    "Label Studio's folder": ("/data/local-files/?d=images%5C{}.png", "images/{}.png"),
}


@pytest.mark.parametrize("case", OTHER_NAMES)
def test_images_are_found_under_other_names(tmp_path, case, caplog):
    listed, path = OTHER_NAMES[case]
    file = make_coco(tmp_path, image_folder="made")
    with changed(file) as coco:
        for number, image in enumerate(coco["images"]):
            image["file_name"] = listed.format(number)
            made = tmp_path / path.format(number)
            made.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / f"{number}.png").rename(made)
    fit(file)
    metadata = MetadataCatalog.get(str(file))
    theirs = load_coco_json(metadata.json_file, metadata.image_root)
    for records in (DatasetCatalog.get(str(file)), theirs):
        found = [os.path.normpath(record["file_name"]) for record in records]
        assert found == [str(tmp_path / path.format(number)) for number in range(4)]
    is_said = "images found under other names in" in caplog.text
    assert is_said == (case not in ("dot", "FiftyOne"))


@pytest.mark.parametrize(
    ("listed", "paths", "said"),
    [
        (["a.png"], ["A.png", "a.PNG"], r"it could be A\.png or a\.PNG in .*Correct its file_name"),
        (["a.png", "A.PNG"], ["a.png"], r"the file is listed 2 times: .*images/a\.png"),
        (["x/a.png", "y/a.png"], ["a.png"], r"'x/a\.png'.*: the file is listed 2 times"),
        (["./a.png", "a.png"], ["a.png"], r"the file is listed 2 times"),
        (["a.png", "b.png"], ["a.png", "b.jpg"], r"b\.png does not exist, but .*/b\.jpg does"),
        (["a.png", "x/b.png"], ["a.png", "b.png"], r"images/x/b\.png does not exist"),
        (["a.PNG"], ["a.png", "../mine/a.png"], r"images/a.png or .*mine/a.png\. Name the"),
        (["a.tif"], ["a.png"], r"such as 'a\.tif', are in none of .*\('a\.png' is there\)"),
    ],
)
def test_an_image_that_could_be_another_is_not_taken(tmp_path, listed, paths, said):
    file = make_coco(tmp_path, image_folder="made")
    with changed(file) as coco:
        first = coco["images"][0]
        coco["images"] = [{**first, "id": 10 + i, "file_name": n} for i, n in enumerate(listed)]
        del coco["annotations"][1:]
    for path in paths:
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "made/0.png", tmp_path / "images" / path)
    with pytest.raises(DatasetError, match=said):
        fit(file)


def test_the_split_is_fixed_and_a_fifth(tmp_path):
    names = [f"{i}.jpg" for i in range(100)]
    val = split_names(names, "val")
    assert len(val) == 20 and split_names(names, "train") == set(names) - val
    shuffled = random.Random(0).sample(names, len(names))
    assert split_names(shuffled, "val") == val
    # More images move few: a share is left of what was in validation.
    more = split_names([*names, *(f"new{i}.jpg" for i in range(10))], "val")
    assert len(more & val) >= 17
    # The value itself is documented: a saved config must mean the same split for ever.
    assert split_names(["0.png", "1.png", "2.png", "3.png", "4.png"], "val") == {"0.png"}


@pytest.mark.parametrize("annotated", [{"0.png", "6.png"}, {"1.png", "2.png"}, {"9.png"}, set()])
def test_both_parts_of_a_split_have_objects_where_possible(tmp_path, annotated):
    """Of these ten images, 0.png and 6.png come first by SHA-256."""
    file = make_coco(tmp_path, images=10)
    with changed(file) as coco:
        every = coco["annotations"]
        kept = [a for a in every if f"{a['image_id'] - 10}.png" in annotated]
        coco["annotations"] = kept or [{**a, "iscrowd": 1} for a in every]
    both = f"{file}#train", f"{file}#val"
    if not annotated:
        with pytest.raises(DatasetError, match=r"its 20 annotations are 20 crowds.*iscrowd to 0"):
            fit(both)
        return
    fit(both)
    parts = list(map(DatasetCatalog.get, both))
    assert sum(map(len, parts)) == 10
    with_objects = [sum(bool(record["annotations"]) for record in part) for part in parts]
    assert with_objects == ([1, 1] if len(annotated) > 1 else [1, 0])
    if len(annotated) == 1:
        with pytest.raises(DatasetError, match=r"#val: no .*automatic split.*--val"):
            fit(both[1])


@pytest.mark.parametrize("names", [["0.png"], ["a.rf.1.png", "a.rf.2.png"]])
def test_a_file_that_cannot_be_split_is_trained_on_whole_beside_another(tmp_path, names):
    one, other = make_coco(tmp_path / "one"), make_coco(tmp_path / "other")
    with changed(one) as coco:
        del coco["images"][len(names) :], coco["annotations"][2 * len(names) :]
        for image, name in zip(coco["images"], names, strict=True):
            (tmp_path / "one/images" / image["file_name"]).rename(tmp_path / "one/images" / name)
            image["file_name"] = name
    train, val, _ = named("--train", str(one), "--train", str(other))
    assert (train, val) == ((str(one), f"{other}#train"), (f"{other}#val",))
    with pytest.raises(DatasetError, match=r"one/mine\.json#train: no image is left.*--val"):
        fit(*named("--train", str(one))[:2])


def test_augmented_copies_stay_together():
    names = [f"{i}_jpg.rf.{copy:032x}.jpg" for i in range(30) for copy in range(3)]
    val, train = ({n[:2] for n in split_names(names, part)} for part in ("val", "train"))
    assert len(val) == 6 and len(train) == 24 and not val & train


@pytest.mark.parametrize(
    ("file", "images", "splits"),
    [
        ("annotations/instances_{}.json", "images/{}", ("Train", "Validation")),  # COCO, CVAT
        ("{}/labels.json", "{}/data", ("train", "validation")),  # FiftyOne
    ],
)
def test_exports_of_several_files(tmp_path, file, images, splits):
    for split in splits:
        for name in (file, file.replace("instances", "captions")):
            make_coco(tmp_path, name.format(split), image_folder=images.format(split))
    found = find_export(tmp_path)
    assert list(found) == ["train", "val"]
    for split, names in zip(splits, found.values(), strict=True):
        assert names == [f"{tmp_path}/{file.format(split)}"]
        fit(names[0])
        folder = tmp_path / images.format(split)
        assert Path(DatasetCatalog.get(names[0])[0]["file_name"]).samefile(folder / "0.png")


def test_folders_that_are_no_export(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        find_export(tmp_path / "nothing")
    for name in ("a.json", "b.json"):
        make_coco(tmp_path, name)
    with pytest.raises(DatasetError, match=r"found a\.json, b\.json.*--train"):
        find_export(tmp_path)


def test_arguments_become_config_keys(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid", "test"):  # as Roboflow exports
        make_coco(tmp_path / "export", f"{split}/_annotations.coco.json", image_folder=split)
    one = str(make_coco(tmp_path / "a"))
    two = str(make_coco(tmp_path / "b", "annotations/instances_default.json"))
    assert named("--data", "export") == tuple(
        (f"{tmp_path}/export/{split}/_annotations.coco.json",)
        for split in ("train", "valid", "test")
    )
    train, val = ((f"{one}#{part}", f"{two}#{part}") for part in ("train", "val"))
    assert named("--train", "a/mine.json", "--train", "b") == (train, val, ())
    assert named("--data", "b") == (train[1:], val[1:], ())
    assert named("--data", "b", "--val", "a/mine.json") == ((two,), (one,), ())
    assert named("--train", one, "--val", one) == (train[:1], val[:1], ())
    assert f"{one} is named to train and to validate" in caplog.text
    words = "--train", "a/mine.json", "--val", two, "--test", "digits_val"
    assert named(*words) == ((one,), (two,), ("digits_val",))
    assert named("--train", f"{one}#train") == (train[:1], val[:1], ())
    assert named("--train", "digits_train") == (("digits_train",), (), ())
    assert arguments() == []
    assert arguments("--skip-bad-annotations") == ["DATALOADER.SKIP_BAD_ANNOTATIONS", "True"]
    words = ["--val", str(one), "--test", "digits_val"]
    expected = ["DATASETS.TEST", "('digits_val',)", "DATASETS.FINAL_TEST", "()"]
    assert arguments(*words, eval_only=True) == expected


def test_images_beside_the_annotations_come_before_those_of_a_neighbor(tmp_path):
    """A neighbor with the same names is another data set, also where one image is missing here."""
    make_coco(tmp_path, "other.json", image_folder="images")
    file = make_coco(tmp_path / "mine", image_folder=".")
    names = [f"{number}.png" for number in range(4)]
    assert Source(file).images(names).folder == file.parent
    (file.parent / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"0\.png does not exist"):
        fit(file)
    elsewhere = [f"/home/me/x/{name}" for name in names]  # in a list of another computer
    found = Source(file).images(elsewhere)
    assert found.path(elsewhere[1]) == file.parent / "1.png"


def test_a_folder_named_mask_that_has_annotations_holds_their_images(tmp_path):
    make_coco(tmp_path, image_folder="images")
    own = tmp_path / "face_mask"
    shutil.copytree(tmp_path / "images", own)
    assert Source(own).images(["0.png"]).folder == tmp_path / "images"  # of masks
    (own / "0.xml").touch()
    assert Source(own).images(["0.png"]).folder == own
