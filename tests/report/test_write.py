"""The page: complete, self-contained, escaped, the same every time, and there in every case."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from coco_cases import coco, detection, jittered, truth_annotation
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

import gnws_d2
from gnws_d2.engine.evaluation import build_evaluator
from gnws_d2.engine.folders import dataset_folder, short_name
from gnws_d2.projects.report import write
from gnws_d2.projects.report.images import RIGHT, WRONG, draw, jpeg, without
from gnws_d2.projects.report.matching import match
from gnws_d2.projects.report.run import try_report
from gnws_d2.projects.report.write import write_report

EVIL = "<script>alert(1)</script> & $x^$"


class Parsed(HTMLParser):
    """The tags, the addresses and the text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.styles = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.addresses.append(value)
            if name == "style":
                self.styles += value

    def handle_data(self, text):
        if self.tags and self.tags[-1] == "style" and "{" in text:
            self.styles += text
        else:
            self.text += f" {text}"


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "collect_env_info", lambda: "PyTorch 1.2.3")  # takes a second
        yield


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path_factory.mktemp("output"))]
    return gnws_d2.load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", opts)


@pytest.fixture(scope="module")
def digits_report(cfg, tiny_digits):
    """(page, truth, detections)"""
    output = Path(cfg.OUTPUT_DIR)
    lines = [
        '{"iteration": 19, "total_loss": 2.0, "loss_cls": 1.0, "lr": 0.1}',
        '{"iteration": 39, "total_loss": 1.0, "loss_cls": 0.5, "lr": 0.1, "bbox/AP": 5.0}',
    ]
    (output / "metrics.json").write_text("\n".join(lines))
    truth = COCO(tiny_digits / "digits_val.json")
    rows = jittered(truth)
    page = write_report(
        *(output / "report", cfg, "tiny_digits_val", truth, rows),
        weights="model & best.pth",
        data_summary={"boxes": {"small": 3, EVIL: 4}},
        images=1,
    )
    return page, truth, rows


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(digits_report):
    page, *_ = digits_report
    assert page.name == "report.html" and page.stat().st_size < 5_000_000
    parsed = Parsed(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert all(a.startswith(("data:image/", "#")) for a in parsed.addresses), parsed.addresses
    assert "url(" not in parsed.styles and "@import" not in parsed.styles
    images = [a for a in parsed.addresses if a.startswith("data:")]
    for address in images:
        Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).verify()
    # Two tasks of 6 plots, 3 of the training, and 3 images twice.
    assert len(images) == 2 * 6 + 3 + 3 * 2


@pytest.mark.slow
def test_the_numbers_of_the_page_are_those_of_the_evaluation(digits_report):
    page, truth, rows = digits_report
    text = Parsed(page).text
    for task in ("bbox", "segm"):
        matches = match(truth, rows, task)
        for name in ("AP", "AP50", "AP75"):
            assert f"{matches.ap[name]:.1f} {name}" in text
        assert f"threshold {matches.suggested_threshold:.2f}" in text
        for k, name in enumerate(matches.classes):
            if matches.objects[k]:
                assert f"{name} {matches.objects[k]} {matches.class_ap[k, 0]:.1f}" in text


@pytest.mark.slow
def test_config_data_environment_and_commands(digits_report):
    page, *_ = digits_report
    parsed = Parsed(page)
    assert "MODEL.RESNETS.DEPTH 18" in parsed.text  # a key that differs from the defaults
    assert "PyTorch 1.2.3" in parsed.text
    assert "--weights 'model & best.pth'" in parsed.text
    assert f"small 3 {EVIL} 4" in parsed.text and EVIL not in parsed.source


@pytest.mark.slow
def test_plots_and_images_are_files_too(digits_report):
    folder = digits_report[0].parent
    names = {file.name for file in folder.glob("*.png")}
    plots = ("precision_recall_50", "precision_recall_75", "f1", "scores", "confusion")
    wanted = {f"{t}_{p}.png" for t in ("bbox", "segm") for p in (*plots, "ap_per_class")}
    assert names == wanted | {"loss.png", "ap_history.png", "learning_rate.png"}
    assert {file.name for file in (folder / "images").iterdir()} == {
        *("worst_1.jpg", "best_1.jpg", "random_1.jpg")
    }


@pytest.mark.slow
def test_it_is_the_same_every_time(digits_report, cfg, tmp_path):
    page, truth, rows = digits_report
    again = write_report(
        *(tmp_path, cfg, "tiny_digits_val", truth, rows),
        weights="model & best.pth",
        data_summary={"boxes": {"small": 3, EVIL: 4}},
        images=1,
    )
    for file in page.parent.rglob("*.*"):
        assert (tmp_path / file.relative_to(page.parent)).read_bytes() == file.read_bytes(), file
    assert again == tmp_path / "report.html"


def write_case(cfg, folder: Path, truth: COCO, rows: list) -> Parsed:
    for image in truth.dataset["images"]:
        pixels = np.full((image["height"], image["width"], 3), 120, np.uint8)
        if not image["file_name"].startswith("missing"):
            Image.fromarray(pixels).save(folder / image["file_name"])
        image["file_name"] = str(folder / image["file_name"])
    return Parsed(write_report(folder, cfg, "case", truth, rows, weights="model.pth", images=1))


def test_names_are_escaped(cfg, tmp_path):
    truth = coco([truth_annotation(1, 1, 1, 0)], names=(EVIL, "$"))
    parsed = write_case(cfg, tmp_path, truth, [detection(1, 2, 0, 0.9)])
    assert EVIL in parsed.text and "<script>" not in parsed.source
    assert "script" not in parsed.tags


def test_no_detections(cfg, tmp_path):
    parsed = write_case(cfg, tmp_path, coco([truth_annotation(1, 1, 1, 0)]), [])
    assert "detects nothing" in parsed.text and "0 found, 1 missed" in parsed.text


def test_no_truth(cfg, tmp_path):
    truth = coco([])
    del truth.dataset["annotations"]  # as in COCO's test-dev
    parsed = write_case(cfg, tmp_path, truth, [detection(1, 1, 0, 0.9)])
    assert "no annotations" in parsed.text and "nan" not in parsed.text


def test_one_class_and_a_missing_image(cfg, tmp_path):
    truth = coco([truth_annotation(i, i, 1, 0) for i in (1, 2)], names=("cell",))
    truth.imgs[2]["file_name"] = "missing.png"
    parsed = write_case(cfg, tmp_path, truth, [detection(1, 1, 0, 0.9)])
    assert "1 image could not be read" in parsed.text and "missing.png" in parsed.text
    assert "cell 2 " in parsed.text  # both objects count


@pytest.mark.slow
def test_eighty_classes(cfg, tmp_path):
    names = tuple(f"class {k}" for k in range(80))
    truth = coco([truth_annotation(1 + k, 1, 1 + k, 0) for k in range(80)], names=names)
    parsed = write_case(cfg, tmp_path, truth, [detection(1, k, 0, 0.9) for k in range(1, 80, 2)])
    assert all(f"{name} 1 " in parsed.text for name in names)
    for name in ("bbox_confusion.png", "bbox_ap_per_class.png"):
        assert Image.open(tmp_path / name).height > 15 * 80  # pixels for a class


def test_a_training_does_not_fail_with_its_report(cfg, tmp_path, caplog):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path)
    assert try_report(cfg, "") == []
    (message,) = caplog.messages
    assert "coco_instances_results.json" in message and f"--output-dir {tmp_path}" in message


def test_a_training_that_evaluates_nothing_has_no_report(cfg, tmp_path, caplog):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(tmp_path), ()
    assert try_report(cfg, "") == [] and not caplog.messages


def test_drawn_boxes_and_masks_are_where_they_belong():
    """Also where an image is enlarged: a box of a quarter, a mask of the opposite one with a
    hole."""
    size, side = 64, 256
    mask = np.zeros((size, size), np.uint8)
    mask[32:, 32:] = 1
    mask[44:52, 44:52] = 0
    annotations = [
        {"bbox": [0, 0, 32, 32]},
        {"bbox": [32, 32, 32, 32], "segmentation": mask_util.encode(np.asfortranarray(mask))},
    ]
    blank = np.full((size, size, 3), 255, np.uint8)
    image = draw(blank, annotations, ["", ""], [RIGHT, WRONG], side=side).astype(int)
    assert image.shape == (side, side, 3)
    assert (image[64, 200] == 255).all() and (image[200, 64] == 255).all()  # the other quarters
    assert (image[48, 48] == 255).all()  # inside the box, which is not filled
    assert image[48, 128, 0] < 250  # its edge is blue
    assert image[144, 200, 2] < 250 and image[144, 200, 0] > 250  # the mask is orange
    assert (image[192, 192] == 255).all()  # its hole
    point = {"bbox": [0, 0, 8, 8], "keypoints": [48, 16, 2]}
    assert (draw(blank, [point], [""], [RIGHT], side=side)[64, 192] < 250).any()


def test_a_jpeg_fits_its_limit():
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    assert 5_000 < len(jpeg(noise, 30_000)) <= 30_000


def test_folders_of_several_datasets(cfg, tiny_digits):
    cfg = cfg.clone()
    assert dataset_folder(cfg, cfg.DATASETS.TEST[0]) == ""
    sources = ("/a/valid/_annotations.coco.json", "/a/valid/_annotations.coco.json#val", "coco_x")
    cfg.DATASETS.TEST = sources
    folders = [dataset_folder(cfg, name) for name in sources]
    assert folders == ["valid_annotations.coco", "valid_annotations.coco_val", "coco_x"]
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = ("tiny_digits_val", "coco_x"), "out"
    results = Path("out", "inference", "tiny_digits_val")
    assert Path(build_evaluator(cfg, "tiny_digits_val")._output_dir) == results
    assert short_name(sources[1]) == "valid/_annotations.coco.json (val)"
    assert short_name("coco_x") == "coco_x"


def test_masks_are_drawn_only_for_a_detector_of_masks():
    annotation = {
        "bbox": [0, 0, 9, 9],
        "segmentation": [[0, 0, 9, 0, 9, 9]],
        "keypoints": [1, 1, 2],
    }
    assert without([annotation], {"segmentation", "keypoints"}) == [{"bbox": [0, 0, 9, 9]}]
    assert "segmentation" in annotation
