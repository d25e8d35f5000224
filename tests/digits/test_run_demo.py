"""``demo.py`` as its users run it: images in, drawn images and COCO's form out."""

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
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import ELSEHOW, TINY

import gnws_d2
from gnws_d2.checkpoint import Provenance

DEMO = Path(__file__).parents[1] / "projects" / "Detection" / "demo.py"
PARTS = ["stem", "backbone", "fpn", "box_head", "mask_head"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_digits) -> Path:
    """A detector that finds something everywhere: an untrained one."""
    torch.manual_seed(0)
    model = build_model(gnws_d2.load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", TINY))
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, file)
    return file


def run(weights: Path, output: Path, *inputs: object, how=()) -> subprocess.CompletedProcess:
    words = [DEMO, "--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"]
    words += ["--confidence-threshold", "0.05", "--output", output, "--input", *inputs]
    words += ["--opts", *TINY, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights, *how]
    words += ["TEST.DETECTIONS_PER_IMAGE", "20"]
    return processes.run(*words)


def test_files_folders_globs_and_unreadable_images(weights, digits, tmp_path):
    folder, other, output = tmp_path / "folder", tmp_path / "other", tmp_path / "found"
    folder.mkdir(), other.mkdir()
    names = sorted(f.name for f in (digits / "val").glob("*.png"))
    for name in names[:2]:
        shutil.copy(digits / "val" / name, folder / name)
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    Image.open(digits / "val" / names[2]).resize((700, 500)).save(other / names[0])
    (other / "broken.png").write_bytes((digits / "val" / names[0]).read_bytes()[:500])

    done = run(
        weights, output, folder, f"{other}/0*.png", other / "broken.png", tmp_path / "no.jpg"
    )
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


@pytest.mark.parametrize("how", [[], ELSEHOW])
def test_all_readable_is_exit_code_0(weights, digits, tmp_path, how):
    done = run(weights, tmp_path / "found", digits / "val" / "000000.png", how=how)
    assert done.returncode == 0, done.stderr
    assert ("Fused 21 of 32 GroupNorms" in done.stdout + done.stderr) == bool(how)


def test_class_names_come_with_the_weights(weights, digits, tmp_path):
    """Also where the dataset that they were trained on is not known."""
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["gnws_d2"] = Provenance(classes=list("abcdefghij")).as_dict()
    torch.save(checkpoint, tmp_path / "named.pth")
    done = run(tmp_path / "named.pth", tmp_path / "found", digits / "val" / "000000.png")
    assert done.returncode == 0, done.stderr
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
    cfg = gnws_d2.load_config(
        "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", [*TINY, "MODEL.DEVICE", "cpu"]
    )
    tensors = torch.load(weights, weights_only=True)["model"]
    names = [category["name"] for category in truth["categories"]]
    scores = {}
    for shift in (0, 70):
        for category in truth["categories"]:
            category["id"] += shift
        for annotation in truth["annotations"]:
            annotation["category_id"] += shift
        for image in truth["images"]:
            image["id"] += shift
        for annotation in truth["annotations"]:
            annotation["image_id"] += shift
        shifted = tmp_path / f"truth{shift}.json"
        shifted.write_text(json.dumps(truth))
        ids = [category["id"] for category in truth["categories"]]
        trained = replace(Provenance.of(cfg, PARTS), classes=names, category_ids=ids)
        file = tmp_path / f"model{shift}.pth"
        torch.save({"model": tensors, "gnws_d2": trained.as_dict()}, file)
        output = tmp_path / f"found{shift}"
        done = processes.run(
            *(DEMO, "--weights", file, "--input", digits / "val", "--output", output),
            *("--confidence-threshold", "0.0", "--image-ids", shifted),
            *("--opts", "DATASETS.TEST", "()"),
        )
        assert done.returncode == 0, done.stderr
        ours = json.loads((output / "detections.json").read_text())
        assert [c["id"] for c in ours["categories"]] == ids
        coco = COCO(shifted)
        evaluation = COCOeval(coco, coco.loadRes(ours["annotations"]), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
        scores[shift] = evaluation.stats.tolist()
    assert scores[0] == scores[70] and max(scores[0]) > 0


def test_ctrl_c_writes_what_was_detected(weights, digits, tmp_path):
    words = [DEMO, "--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "--weights", weights]
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
