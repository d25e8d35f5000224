"""``demo.py`` as its users run it: images in, drawn images and COCO's format out."""

import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import ELSEHOW, TINY
from trainings import CONFIG

import gnws_d2
from gnws_d2.checkpoint import Provenance

DEMO = Path(__file__).parents[2] / "projects" / "Detection" / "demo.py"
PARTS = ["stem", "backbone", "fpn", "box_head", "mask_head"]
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


def test_class_names_come_with_the_weights(weights, digits, tmp_path):
    """Also where the dataset that they were trained on is not known; with keys of Acceleration."""
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["gnws_d2"] = Provenance(classes=list("abcdefghij")).as_dict()
    torch.save(checkpoint, tmp_path / "named.pth")
    image = digits / "val" / "000000.png"
    done = run(tmp_path / "named.pth", tmp_path / "found", image, how=ELSEHOW)
    assert done.returncode == 0, done.stderr
    assert "Fused 21 of 32 GroupNorms" in done.stdout + done.stderr
    found = COCO(tmp_path / "found" / "detections.json")
    assert [c["name"] for c in found.dataset["categories"]] == list("abcdefghij")
    assert found.getAnnIds()


def test_without_weights_it_says_so(digits, tmp_path):
    done = run("", tmp_path / "found", digits / "val")
    assert done.returncode == 1 and "MODEL.WEIGHTS is empty" in done.stderr
    assert not (tmp_path / "found").exists()


def test_a_checkpoint_alone_and_ids_of_the_user_s_dataset(weights, digits, tmp_path):
    """detections.json scores against the dataset's own file, whatever its ids are."""
    truth = json.loads((digits / "digits_val.json").read_text())
    for entry in truth["categories"] + truth["images"]:
        entry["id"] += 70
    for annotation in truth["annotations"]:
        annotation["category_id"] += 70
        annotation["image_id"] += 70
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    ids = [category["id"] for category in truth["categories"]]
    names = [category["name"] for category in truth["categories"]]
    cfg = gnws_d2.load_config(CONFIG, [*TINY, "MODEL.DEVICE", "cpu"])
    trained = replace(Provenance.of(cfg, PARTS), classes=names, category_ids=ids)
    tensors = torch.load(weights, weights_only=True)["model"]
    torch.save({"model": tensors, "gnws_d2": trained.as_dict()}, tmp_path / "model.pth")
    done = processes.run(
        *(DEMO, "--weights", tmp_path / "model.pth", "--input", digits / "val"),
        *("--output", tmp_path / "found", "--image-ids", tmp_path / "truth.json"),
        *("--confidence-threshold", "0.0", "--opts", "DATASETS.TEST", "()"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [c["id"] for c in found["categories"]] == ids
    coco = COCO(tmp_path / "truth.json")
    evaluation = COCOeval(coco, coco.loadRes(found["annotations"]), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    assert max(evaluation.stats) > 0


def test_ctrl_c_writes_what_was_detected(weights, digits, tmp_path):
    words = [DEMO, "--config-file", CONFIG, "--weights", weights]
    words += ["--output", tmp_path / "found", "--input", *[digits / "val"] * 100]
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
