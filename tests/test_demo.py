"""``demo.py`` as its users run it: images in, drawn images and COCO's form out."""

import shutil
import subprocess
from pathlib import Path

import processes
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO
from tiny import ELSEHOW, TINY

from gnws_d2.checkpoint import Provenance

DEMO = Path(__file__).parents[1] / "projects" / "Detection" / "demo.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_digits) -> Path:
    """A detector that finds something everywhere: an untrained one."""
    import gnws_d2

    torch.manual_seed(0)
    model = build_model(gnws_d2.load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", TINY))
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, file)
    return file


def run(weights: Path, output: Path, *inputs: object, how=()) -> subprocess.CompletedProcess:
    words = [DEMO, "--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"]
    words += ["--confidence-threshold", "0.05", "--output", output, "--input", *inputs]
    words += ["--opts", *TINY, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights, *how]
    return processes.run(*words)


def test_files_folders_globs_and_unreadable_images(weights, digits, tmp_path):
    folder, other, output = tmp_path / "folder", tmp_path / "other", tmp_path / "found"
    folder.mkdir(), other.mkdir()
    names = sorted(f.name for f in (digits / "val").glob("*.png"))
    stem = Path(names[0]).stem
    for name in names[:2]:
        shutil.copy(digits / "val" / name, folder / name)
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    Image.open(digits / "val" / names[2]).resize((700, 500)).save(
        other / f"{Path(names[0]).stem}.jpg"
    )
    (other / "broken.png").write_bytes((digits / "val" / names[0]).read_bytes()[:500])

    done = run(weights, output, folder, f"{other}/*.jpg", other / "broken.png", tmp_path / "no.jpg")
    assert done.returncode == 1, done.stderr
    assert "broken.png cannot be read" in done.stderr + done.stdout
    assert "no.jpg cannot be read" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr

    drawn = {f.name: Image.open(f).size for f in output.glob("*.png")}
    # Small images are drawn larger; two inputs of the same name are both kept.
    assert drawn == {names[0]: (480, 480), names[1]: (480, 480), f"{stem}_2.png": (700, 500)}

    found = COCO(output / "detections.json")
    assert [i["file_name"] for i in found.dataset["images"]] == [
        *(str(folder / name) for name in names[:2]),
        str(other / f"{stem}.jpg"),
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
