"""export_model.py, run_onnx.py and support.py as their users run them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from processes import run
from tiny import TINY

import gnws_d2
from gnws_d2.data import read_image

DETECTION = Path(__file__).parents[2] / "projects" / "Detection"
CONFIG = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
pytestmark = pytest.mark.slow

# An environment that has neither torch nor Detectron2.
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules.update(torch=None, detectron2=None, gnws_d2=None); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_digits) -> Path:
    torch.manual_seed(0)
    model = build_model(gnws_d2.load_config(CONFIG, TINY))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, file)
    return file


def test_onnx_without_torch_finds_what_the_demo_finds(weights, digits, tmp_path):
    picture = sorted((digits / "val").glob("*.png"))[0]
    opts = ["--opts", *TINY, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights]
    opts += ["INPUT.MIN_SIZE_TEST", "100"]
    words = ["--config-file", CONFIG, "--input", picture, "--output", tmp_path / "exported"]
    done = run(DETECTION / "export_model.py", *words, "--format", "onnx", *opts)
    assert done.returncode == 0, done.stderr
    assert re.search(r"model\.onnx +\| +\d+\.\d \| +2 \|", done.stdout), done.stdout

    model, found = tmp_path / "exported" / "model.onnx", tmp_path / "found.png"
    words = [DETECTION / "run_onnx.py", model, picture, "--output", found]
    words = [sys.executable, "-c", WITHOUT_TORCH, *words, "--confidence-threshold", "0.05"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert Image.open(found).size == Image.open(picture).size
    lines = re.findall(r"^(\d): ([\d.]+) at ([\d., -]+)$", done.stdout, re.MULTILINE)
    ours = [(name, float(score), [float(x) for x in box.split(",")]) for name, score, box in lines]

    words = ["--config-file", CONFIG, "--input", picture, "--output", tmp_path / "demo"]
    done = run(DETECTION / "demo.py", *words, "--confidence-threshold", "0.05", *opts)
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "demo" / "detections.json").read_text())["annotations"]
    assert len(ours) == len(theirs) > 0
    # Scores that are nearly equal may come in another order.
    assert all(any(same(mine, other) for other in theirs) for mine in ours)
    assert all(any(same(mine, other) for mine in ours) for other in theirs)


@pytest.mark.parametrize("kind", ["turned.jpg", "deep.png", "plain.png"])
def test_the_example_reads_images_as_the_package_does(tmp_path, monkeypatch, kind):
    monkeypatch.syspath_prepend(str(DETECTION))
    import run_onnx

    file, exif = tmp_path / kind, Image.Exif()
    exif[0x0112] = 8
    rng = np.random.default_rng(0)
    if kind == "deep.png":
        Image.fromarray(rng.integers(0, 65536, (20, 30), np.uint16)).save(file)
    else:
        levels = rng.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(levels).save(file, **({"exif": exif} if kind == "turned.jpg" else {}))
    found = np.asarray(run_onnx.read(str(file)))
    assert np.array_equal(found, read_image(file, "RGB"))
    assert found.shape == ((30, 20, 3) if kind == "turned.jpg" else (20, 30, 3))

    Image.fromarray(rng.random((20, 30), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(SystemExit, match="32-bit pixels"):
        run_onnx.read(str(tmp_path / "float.tiff"))


def same(ours: tuple[str, float, list[float]], other: dict) -> bool:
    name, score, (x0, y0, x1, y1) = ours
    return (
        int(name) + 1 == other["category_id"]  # of Digits
        and abs(score - other["score"]) < 1e-3
        and [x0, y0, x1 - x0, y1 - y0] == pytest.approx(other["bbox"], abs=0.11)
    )


def test_a_refused_format_is_exit_code_1(weights, digits, tmp_path):
    picture = sorted((digits / "val").glob("*.png"))[0]
    words = ["--config-file", "Digits/retinanet_R_18_FPN_gn_ws.yaml", "--input", picture]
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
