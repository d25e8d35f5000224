"""What a dataset holds is counted, against numbers that are worked out by hand."""

import json

import pytest
from coco_files import WIDTH, change_all, changed, fit, make_coco
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from gnws.arguments import parse
from gnws_d2.projects.own_data import check_data, data_summary
from gnws_d2.projects.own_data.summary import summary_table

SMALL = ["INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "1000"]


@pytest.fixture
def file(tmp_path):
    """Of 5 images: one empty, one with a crowd, objects of sides 16, 8 and 1.5 pixels."""
    file = make_coco(tmp_path, images=5)
    boxes = [*[[4, 6, 16, 16]] * 2, *[[10, 10, 8, 8]] * 2, [1, 1, 1.5, 1.5], [0, 0, 60, 40]]
    with changed(file) as coco:
        kept = coco["annotations"] = coco["annotations"][:6]
        for annotation, box in zip(kept, boxes, strict=True):
            annotation.update(bbox=box, area=box[2] * box[3], segmentation=[])
        kept[0]["category_id"] = kept[1]["category_id"] = 7  # duplicates, unlike the next two
        kept[4]["image_id"], kept[5]["image_id"], kept[5]["iscrowd"] = 12, 13, 1
    return file


def test_the_numbers_and_their_table(file, caplog):
    caplog.set_level("INFO")
    cfg = fit(file, (), *SMALL, "MODEL.ANCHOR_GENERATOR.SIZES", "[[4],[24]]")
    found = data_summary(str(file), cfg)
    assert json.loads(json.dumps(found)) == found
    assert (found["images"], found["images_without_annotations"]) == (5, 1)
    assert (found["boxes"], found["crowds"]) == (5, 1)
    assert found["boxes_per_class"] == {"dog": 1, "cat": 4}
    assert (found["tiny_boxes"], found["duplicate_boxes"]) == (1, 1)
    assert found["sides"][1] == 8
    # 48 rows become 96: twice the side. 1.5 becomes 3, below 4; 16 becomes 32, above 24.
    assert found["resized_sides"][1] == 16
    assert found["below_smallest_anchor"] == 0.2 and found["above_largest_anchor"] == 0.4
    table = summary_table([str(file)], cfg)
    assert table in caplog.text
    rows = dict(line.rsplit("  ", 1) for line in table.splitlines()[2:])
    found = {name.strip(): value.strip() for name, value in rows.items()}
    assert found["boxes of cat"] == "4" and found["smallest anchor"] == "4"
    assert found["share of boxes below the smallest anchor"] == "20%"
    assert found["box side in pixels (5th, 50th, 95th percentile)"] == "3, 8, 16"


def test_an_image_in_training_and_validation_is_said(tmp_path, caplog):
    train, val = make_coco(tmp_path), make_coco(tmp_path, "val.json", images=1)
    fit(train, val)
    assert f"1 images of {train} are also in {val}, such as {tmp_path}/images/0.png" in caplog.text


@pytest.fixture
def run(monkeypatch, caplog):
    """The command; its log goes to caplog, not to a handler that would stay for other tests."""
    monkeypatch.setattr(check_data, "setup_logger", lambda **_: None)
    caplog.set_level("INFO")
    return lambda *words: check_data.main(parse("check-data", words))


def test_the_command_lists_everything_and_fails(tmp_path, run, caplog):
    file = make_coco(tmp_path, images=10)
    image = tmp_path / "images" / "3.png"
    image.write_bytes(image.read_bytes()[:-4000])  # its header is whole
    Image.open(tmp_path / "images" / "4.png").save(tmp_path / "images" / "5.png")
    with changed(file) as coco:
        coco["annotations"][0]["bbox"][2] = 3 * WIDTH
    output = tmp_path / "found.txt"
    assert run("--data", str(tmp_path), "--output", str(output)) == 1
    found = json.loads(output.read_text())
    ((named, problems),) = found["problems"].items()
    assert named == str(file)
    assert [(p["image"], p["annotation"]) for p in problems] == [(13, None), (10, 100)]
    assert "3.png cannot be read" in problems[0]["reason"]
    assert found["same_content"] == [[str(tmp_path / "images" / f"{i}.png") for i in (4, 5)]]
    assert set(found["summary"]) == {f"{file}#train", f"{file}#val"}
    for problem in problems:
        assert problem["reason"] in caplog.text
    with changed(file) as coco:
        coco["annotations"][0]["bbox"][2] = 16
        coco["images"].pop(3)
        coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 13]
    assert run(str(file)) == 0


def test_the_command_checks_a_registered_dataset(tmp_path, run, caplog):
    file = make_coco(tmp_path)
    change_all(file, iscrowd=1)
    with changed(file) as coco:
        coco["annotations"][0]["bbox"] = [70, 40, 20, 20]
    register_coco_instances("mine", {}, str(file), str(tmp_path / "images"))
    assert run("mine") == 1
    assert "annotation 100 of '0.png': its bbox is [70, 40, 20, 20], outside" in caplog.text
    assert "all 8 annotations are crowds, which are not trained on" in caplog.text


@pytest.mark.parametrize(
    "words", [[], ["nothing.json"], ["--data", "nothing"], ["coco_2017_train"]]
)
def test_the_command_without_data(words, run):
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
