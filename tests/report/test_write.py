"""The page: complete, self-contained, escaped, and there in every case."""

import base64
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_cases import coco, detection, jittered, truth_annotation
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

import gnws_d2
from gnws_d2.data import read_labels
from gnws_d2.engine import build_evaluator, dataset_folder
from gnws_d2.projects.own_data import short_name
from gnws_d2.projects.report import report_run, suggested_threshold, try_report, write
from gnws_d2.projects.report.curves import read_history
from gnws_d2.projects.report.images import RIGHT, WRONG, draw, without
from gnws_d2.projects.report.matching import match
from gnws_d2.projects.report.write import write_report

EVIL = "<script>alert(1)</script> & $x^$"


class Parsed:
    """The addresses and the text of a page."""

    def __init__(self, file: Path) -> None:
        self.source = file.read_text(encoding="utf-8")
        names = "src|href|srcset|action|data|poster|background"
        self.addresses = re.findall(rf'<[^>]*\s(?:{names})="([^"]*)"', self.source)
        shown = re.sub(r"<style>.*?</style>|<[^>]*>", " ", self.source, flags=re.DOTALL)
        self.text = " ".join(html.unescape(shown).split())


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "collect_env_info", lambda: "PyTorch 1.2.3")  # takes a second
        yield


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path_factory.mktemp("output"))]
    return gnws_d2.load_config("Digits/keypoint_rcnn_R_18_FPN_gn_ws.yaml", opts)


@pytest.fixture(scope="module")
def digits_report(cfg, tiny_digits):
    """(page, truth, detections)"""
    output = Path(cfg.OUTPUT_DIR)
    (output / "metrics.json").write_text(
        '{"iteration": 19, "total_loss": 2.0, "loss_cls": 1.0, "lr": 0.1}\n'
        '{"iteration": 39, "total_loss": 1.0, "loss_cls": 0.5, "lr": 0.1, "bbox/AP": 5.0}\n'
    )
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
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b", parsed.source)
    assert all(a.startswith(("data:image/", "#")) for a in parsed.addresses), parsed.addresses
    assert "url(" not in parsed.source and "@import" not in parsed.source
    images = [a for a in parsed.addresses if a.startswith("data:")]
    for address in images:
        Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).verify()
    # Three tasks of 3 plots, 3 of the training, and 3 images twice.
    assert len(images) == 3 * 3 + 3 + 3 * 2
    # They are files, too.
    plots = ("precision_recall", "f1", "confusion")
    wanted = {f"{task}_{p}.png" for task in ("bbox", "segm", "keypoints") for p in plots}
    wanted |= {"loss.png", "ap_history.png", "learning_rate.png"}
    wanted |= {"worst_1.jpg", "best_1.jpg", "random_1.jpg"}
    assert {file.name for file in page.parent.rglob("*.*g")} == wanted


@pytest.mark.slow
def test_the_page_shows_the_evaluation_config_data_environment_and_commands(digits_report):
    page, truth, rows = digits_report
    parsed = Parsed(page)
    for task in ("bbox", "segm", "keypoints"):
        matches = match(truth, rows, task, [0.05] * 4)
        for name in ("AP", "AP50", "AP75"):
            assert f"{matches.ap[name]:.1f} {name}" in parsed.text
        assert f"threshold {matches.suggested_threshold:.2f}" in parsed.text
        for k, name in enumerate(matches.classes):
            if matches.objects[k]:
                assert f"{name} {matches.objects[k]} {matches.class_ap[k, 0]:.1f}" in parsed.text
    assert "MODEL.RESNETS.DEPTH 18" in parsed.text  # a key that differs from the defaults
    assert "PyTorch 1.2.3" in parsed.text
    assert "--weights 'model & best.pth'" in parsed.text
    assert "Predictor(weights='model & best.pth'" in parsed.text
    assert f"small 3 {EVIL} 4" in parsed.text and EVIL not in parsed.source


def write_case(cfg, folder: Path, truth: COCO, rows: list) -> Parsed:
    for image in truth.dataset["images"]:
        pixels = np.full((image["height"], image["width"], 3), 120, np.uint8)
        if not image["file_name"].startswith("missing"):
            Image.fromarray(pixels).save(folder / image["file_name"])
        image["file_name"] = str(folder / image["file_name"])
    return Parsed(write_report(folder, cfg, "case", truth, rows, weights="model.pth", images=1))


@pytest.mark.slow
def test_names_are_escaped_and_a_missing_image_is_named(cfg, tmp_path):
    truth = coco([truth_annotation(i, i, 1, 0) for i in (1, 2)], names=(EVIL, "$"))
    truth.imgs[2]["file_name"] = "missing.png"
    parsed = write_case(cfg, tmp_path, truth, [detection(1, 1, 0, 0.9), detection(1, 2, 9, 0.9)])
    assert EVIL in parsed.text and "<script>" not in parsed.source
    assert "1 image could not be read" in parsed.text and "missing.png" in parsed.text
    assert f"{EVIL} 2 " in parsed.text  # both objects count


@pytest.mark.slow
def test_no_detections_and_no_truth(cfg, tmp_path):
    parsed = write_case(cfg, tmp_path, coco([truth_annotation(1, 1, 1, 0)], names=("cell",)), [])
    assert "detects nothing" in parsed.text and "0 found, 1 missed" in parsed.text
    truth = coco([])
    del truth.dataset["annotations"]  # as in COCO's test-dev
    parsed = write_case(cfg, tmp_path, truth, [detection(1, 1, 0, 0.9)])
    assert "no annotations" in parsed.text and "nan" not in parsed.text


def test_the_history_of_a_resumed_and_killed_training(tmp_path):
    file = tmp_path / "metrics.json"
    lines = [
        {"iteration": 19, "total_loss": 3.0, "lr": 0.1},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 24, "bbox/AP": 10.0},  # written after a later iteration
        {"iteration": 59, "total_loss": 1.0, "bbox/AP": float("nan")},
        {"iteration": 49, "total_loss": 1.5},  # resumed at 40
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 69, "total')
    history = read_history(file)
    assert history["total_loss"] == {19: 3, 39: 2, 49: 1.5} and history["bbox/AP"] == {24: 10}
    assert read_history(tmp_path / "none.json") == {}


def test_a_training_does_not_fail_with_its_report(cfg, tmp_path, caplog):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path)
    assert try_report(cfg, "") == []
    (message,) = caplog.messages
    assert "coco_instances_results.json" in message and f"--output-dir {tmp_path}" in message
    cfg.DATASETS.TEST = ()  # nothing is evaluated, and so nothing is missing
    assert try_report(cfg, "") == [] and len(caplog.messages) == 1


def test_drawn_boxes_and_masks_are_where_they_belong():
    """Also where an image is enlarged: a box of a quarter, a mask of the opposite one with a
    hole."""
    size, side, names = 64, 256, {1: ""}
    mask = np.zeros((size, size), np.uint8)
    mask[32:, 32:] = 1
    mask[44:52, 44:52] = 0
    rle = mask_util.encode(np.asfortranarray(mask))
    annotations = [
        {"category_id": 1, "bbox": [0, 0, 32, 32]},
        {"category_id": 1, "bbox": [32, 32, 32, 32], "segmentation": rle},
    ]
    blank = np.full((size, size, 3), 255, np.uint8)
    image = draw(blank, annotations, names, [RIGHT, WRONG], side=side).astype(int)
    assert image.shape == (side, side, 3)
    assert (image[64, 200] == 255).all() and (image[200, 64] == 255).all()  # the other quarters
    assert (image[48, 48] == 255).all()  # inside the box, which is not filled
    assert image[48, 128, 0] < 250  # its edge is blue
    assert image[144, 200, 2] < 250 and image[144, 200, 0] > 250  # the mask is orange
    assert (image[192, 192] == 255).all()  # its hole
    point = {"category_id": 1, "bbox": [0, 0, 8, 8], "keypoints": [48, 16, 2]}
    assert (draw(blank, [point], names, [RIGHT], side=side)[64, 192] < 250).any()
    # Masks are drawn only for a detector of masks.
    assert "segmentation" not in without(annotations, {"segmentation", "keypoints"})[1]


def test_semantic_results_are_those_that_numpy_counts(cfg, digits, tmp_path):
    cfg, name = cfg.clone(), "digits_sem_seg_val"
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (name,), str(tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "panoptic_seg/PQ": 41.7}')
    evaluator, records = build_evaluator(cfg, name), DatasetCatalog.get(name)
    evaluator.reset()
    truth = np.stack([read_labels(record["sem_seg_file_name"]) for record in records])
    found = np.roll(truth, 7, axis=2)
    for record, labels in zip(records, found, strict=True):
        scores = torch.nn.functional.one_hot(torch.from_numpy(labels), 11).permute(2, 0, 1)
        evaluator.process([record], [{"sem_seg": scores}])
    evaluator.evaluate()

    [page] = report_run(cfg, "model.pth")
    text, ious = " ".join(page.read_text().split()), []
    for k, label in enumerate(MetadataCatalog.get(name).stuff_classes):
        if (is_true := truth == k).any():
            ious.append(100 * (is_true & (found == k)).sum() / (is_true | (found == k)).sum())
            accuracy = 100 * (found == k)[is_true].mean()
            assert f"<td>{label}</td><td>{ious[-1]:.1f}</td><td>{accuracy:.1f}</td>" in text
    assert f"<b>{np.mean(ious):.1f}</b><span>mIoU" in text
    assert "<b>41.7</b><span>PQ" in text and "--confidence" not in text
    assert suggested_threshold(cfg, [page]) is None


def test_folders_of_several_datasets(cfg, tiny_digits):
    cfg = cfg.clone()
    assert dataset_folder(cfg, cfg.DATASETS.TEST[0]) == ""
    sources = ("/a/valid/_annotations.coco.json", "/a/valid/_annotations.coco.json#val", "coco_x")
    cfg.DATASETS.TEST = sources
    folders = [dataset_folder(cfg, name) for name in sources]
    valid = "_annotations.coco.json"
    assert folders == [f"1_valid_{valid}", f"2_{valid}_val", "3_coco_x"]
    assert short_name(sources[1]) == "valid/_annotations.coco.json (val)"
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = ("tiny_digits_val", "coco_x"), "out"
    evaluator = build_evaluator(cfg, "tiny_digits_val")
    assert Path(evaluator._output_dir) == Path("out", "inference", "1_tiny_digits_val")
