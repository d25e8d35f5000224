"""``demo.py`` as its users run it: images in, drawn images and COCO's format out."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import processes
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from tiny import ELSEHOW, TINY
from trainings import CONFIG

from gnws_d2.checkpoint import Provenance

DEMO = Path(__file__).parents[2] / "projects" / "Detection" / "demo.py"
pytestmark = pytest.mark.slow


def run(weights: object, output: Path, *inputs: object, how=()) -> subprocess.CompletedProcess:
    words = [DEMO, "--config-file", CONFIG, "--confidence-threshold", "0.05", "--output", output]
    words += ["--input", *inputs, "--opts", *TINY, "MODEL.DEVICE", "cpu"]
    return processes.run(*words, *how, "MODEL.WEIGHTS", weights, "TEST.DETECTIONS_PER_IMAGE", "5")


def test_files_folders_globs_and_unreadable_images(weights, digits, tmp_path):
    folder, other, output = tmp_path / "folder", tmp_path / "other", tmp_path / "found"
    folder.mkdir(), other.mkdir()
    names = sorted(f.name for f in (digits / "val").glob("*.png"))
    for name in names[:2]:
        shutil.copy(digits / "val" / name, folder / name)
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    Image.open(digits / "val" / names[2]).resize((700, 500)).save(other / names[0])
    (other / "broken.png").write_bytes((digits / "val" / names[0]).read_bytes()[:500])

    inputs = [folder, f"{other}/0*.png", other / "broken.png", tmp_path / "no.jpg"]
    done = run(weights, output, *inputs)
    assert done.returncode == 1, done.stderr
    assert "broken.png is skipped: cannot be read" in done.stderr + done.stdout
    assert "no.jpg is skipped: does not exist" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr

    drawn = {f.name: Image.open(f).size for f in output.glob("*.png")}
    # Small images are drawn larger; two inputs of the same name are both kept.
    assert drawn == {
        f"{names[0]}.png": (480, 480),
        f"{names[1]}.png": (480, 480),
        f"{names[0]}_2.png": (700, 500),
    }

    found = COCO(output / "detections.json")
    assert [i["file_name"] for i in found.dataset["images"]] == [
        *(str(folder / name) for name in names[:2]),
        str(other / names[0]),
    ]
    assert [c["name"] for c in found.dataset["categories"]] == list("0123456789")
    assert found.getAnnIds()
    for annotation in found.dataset["annotations"]:
        image = found.imgs[annotation["image_id"]]
        assert found.annToMask(annotation).shape == (image["height"], image["width"])
        assert 0.05 <= annotation["score"] <= 1 and annotation["category_id"] in found.cats


def test_names_and_ids_of_classes_come_with_the_weights_and_ids_of_images_from_a_file(
    weights, digits, tmp_path
):
    """Also where the dataset that they were trained on is not known; with keys of Acceleration."""
    names, ids = list("abcdefghij"), list(range(90, 100))
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["gnws_d2"] = Provenance(classes=names, category_ids=ids).as_dict()
    torch.save(checkpoint, tmp_path / "named.pth")
    image, truth = digits / "val" / "000000.png", tmp_path / "truth.json"
    truth.write_text(json.dumps({"images": [{"id": 70, "file_name": image.name}]}))
    inputs = [image, "--image-ids", truth]
    done = run(tmp_path / "named.pth", tmp_path / "found", *inputs, how=ELSEHOW)
    assert done.returncode == 0, done.stderr
    assert "Fused 21 of 32 GroupNorms" in done.stdout + done.stderr
    found = COCO(tmp_path / "found" / "detections.json")
    assert [c["name"] for c in found.dataset["categories"]] == names
    assert [c["id"] for c in found.dataset["categories"]] == ids
    assert found.getAnnIds(imgIds=[70])


def test_ctrl_c_writes_what_was_detected(weights, digits, tmp_path):
    for number in range(400):
        shutil.copy(digits / "val" / "000000.png", tmp_path / f"{number}.png")
    words = [DEMO, "--config-file", CONFIG, "--weights", weights]
    words += ["--output", tmp_path / "found", "--input", tmp_path]
    words += ["--opts", *TINY, "MODEL.DEVICE", "cpu"]
    process = processes.start(*words, stderr=str(tmp_path / "err"))
    try:
        while not len(list((tmp_path / "found").glob("*.png"))) > 2:
            process.join(0.1)
            assert process.is_alive(), (tmp_path / "err").read_text()
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130, (tmp_path / "err").read_text()
    finally:
        process.kill()
    images = json.loads((tmp_path / "found" / "detections.json").read_text())["images"]
    assert 2 < len(images) < 400 and not list((tmp_path / "found").glob(".*"))
