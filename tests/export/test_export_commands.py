"""export_model.py, demo.py with its files, and support.py as their users run them."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from processes import run
from tiny import TINY

import gnws_d2

DETECTION = Path(__file__).parents[2] / "projects" / "Detection"
CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_digits) -> Path:
    torch.manual_seed(0)
    model = build_model(gnws_d2.load_config(CONFIG, TINY))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, file)
    return file


def test_the_demo_finds_the_same_with_exported_files(weights, digits, tmp_path):
    image = sorted((digits / "val").glob("*.png"))[0]
    opts = ["--opts", *TINY, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights]
    opts += ["INPUT.MIN_SIZE_TEST", "80"]  # of which 65 are the least that a file takes
    words = ["--config-file", CONFIG, "--input", image, "--output", tmp_path / "exported"]
    formats = ["--format", "onnx", "openvino"]
    done = run(DETECTION / "export_model.py", *words, *formats, *opts)
    assert done.returncode == 0, done.stderr
    for file in ("onnx", "xml"):
        assert re.search(rf"model\.{file} +\| +\d+\.\d \| +2 \|", done.stdout), done.stdout

    def detect(name, *model):
        words = ["--input", image, "--output", tmp_path / name, "--confidence-threshold", "0.05"]
        done = run(DETECTION / "demo.py", *model, *words)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / name / "detections.json").read_text())

    done = run(
        *(DETECTION / "demo.py", "--config-file", CONFIG, "--input", image),
        *("--output", tmp_path / "model", "--confidence-threshold", "0.05", *opts),
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads((tmp_path / "model" / "detections.json").read_text())
    assert expected["annotations"]
    for name in ("model.onnx", "model.xml"):
        found = detect(name, "--weights", tmp_path / "exported" / name)
        assert found["categories"] == expected["categories"]
        assert len(found["annotations"]) == len(expected["annotations"])
        # Scores that are nearly equal may come in another order.
        for ours in found["annotations"]:
            assert any(same(ours, other) for other in expected["annotations"])


def same(ours: dict, other: dict) -> bool:
    return (
        ours["category_id"] == other["category_id"]
        and abs(ours["score"] - other["score"]) < 1e-3
        and ours["bbox"] == pytest.approx(other["bbox"], abs=0.11)
        and abs(ours["area"] - other["area"]) <= max(2, 0.02 * other["area"])
    )


def test_a_refused_format_is_exit_code_1(weights, digits, tmp_path):
    image = sorted((digits / "val").glob("*.png"))[0]
    words = ["--config-file", "Digits/retinanet_R_18_FPN_gn_ws.yaml", "--input", image]
    words += ["--output", tmp_path, "--format", "onnx", "--opts", *TINY, "MODEL.DEVICE", "cpu"]
    done = run(DETECTION / "export_model.py", *words)
    assert done.returncode == 1 and "MODEL.WEIGHTS is empty" in done.stderr
    cfg = gnws_d2.load_config("Digits/retinanet_R_18_FPN_gn_ws.yaml", TINY)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "retinanet.pth")
    done = run(DETECTION / "export_model.py", *words, "MODEL.WEIGHTS", tmp_path / "retinanet.pth")
    assert done.returncode == 1
    assert (
        "onnx does not support this model: only Faster and Mask R-CNN are supported" in done.stderr
    )
    assert not (tmp_path / "model.onnx").exists()


# Mask R-CNN, whose four files take a minute: see test_export.py.
@pytest.mark.parametrize("name", ["Keypoint R-CNN", "FCOS"])
def test_the_documents_table_is_what_the_command_finds(name):
    done = run(DETECTION / "support.py", "--dry-run", name)
    assert done.returncode == 0, done.stderr
    [found] = re.findall(rf"^\| \[{name}\].*", done.stdout, re.MULTILINE)
    document = (DETECTION.parents[1] / "docs" / "export.md").read_text()
    [written] = re.findall(rf"^\| \[{name}\].*", document, re.MULTILINE)
    cells, expected = ([c.strip() for c in line.split("|")] for line in (found, written))
    without_number = [re.sub(r" \(\d+\)", "", cell) for cell in cells]
    assert without_number == [re.sub(r" \(\d+\)", "", cell) for cell in expected]
