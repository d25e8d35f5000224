"""``python -m gnws_d2.checkpoint`` as its users run it."""

import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from processes import run

from gnws_d2.checkpoint import Checkpointer, detectron2_to_mmdet

GN_WS = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def convert(*words: object) -> subprocess.CompletedProcess:
    return run("-m", "gnws_d2.checkpoint", *words)


@pytest.fixture
def published(tiny_config, tmp_path) -> Path:
    """A file as OpenMMLab publishes it; of the full Digits model, the packaged config's."""
    from gnws_d2 import load_config

    tensors = build_model(load_config(GN_WS)).state_dict()
    file = tmp_path / "published.pth"
    names = detectron2_to_mmdet(tensors)
    torch.save({"meta": {"epoch": 12}, "state_dict": names}, file)
    return file


@pytest.mark.slow
def test_there_and_back(published, tmp_path):
    there, back = tmp_path / "there.pth", tmp_path / "back.pth"
    done = convert(published, there, "--config", GN_WS)
    assert done.returncode == 0, done.stderr
    assert f"written to {there} under detectron2's names" in done.stdout
    done = convert("--to", "mmdet", there, back)
    assert done.returncode == 0, done.stderr
    first, last = (torch.load(f, weights_only=True) for f in (published, back))
    assert list(first["state_dict"]) == list(last["state_dict"])
    assert all(torch.equal(t, last["state_dict"][n]) for n, t in first["state_dict"].items())
    assert last["meta"]["dataset_meta"]["classes"] == list("0123456789")

    from gnws_d2 import load_config

    cfg = load_config(GN_WS)
    Checkpointer(build_model(cfg), cfg=cfg).load(str(there))

    before = there.read_bytes()
    done = convert(published, there)
    assert done.returncode == 1 and "there.pth exists" in done.stderr
    assert there.read_bytes() == before


@pytest.mark.slow
def test_what_does_not_fit_is_not_converted(published, tmp_path):
    target = tmp_path / "target.pth"
    done = convert(
        published, target, "--config", "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
    )
    assert done.returncode == 1 and f"It fits {GN_WS}" in done.stderr
    assert "Traceback" not in done.stderr
    cut = tmp_path / "cut.pth"
    cut.write_bytes(published.read_bytes()[:100000])
    done = convert(cut, target)
    assert done.returncode == 1 and "damaged or cut off" in done.stderr
    assert convert(tmp_path / "none.pth", target).returncode == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["cut.pth", "published.pth"]
