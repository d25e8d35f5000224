"""``gnws convert-weights``: files of MMDetection, there and back."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import logger as log

from gnws.arguments import parse
from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer, Provenance, detectron2_to_mmdet
from gnws_d2.projects.detection import convert_weights

GN_WS = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def convert(*words: object) -> None:
    convert_weights.main(parse("convert-weights", list(map(str, words))))


@pytest.fixture
def published(tmp_path) -> Path:
    """A file as OpenMMLab publishes it; of the full Digits model, the packaged config's."""
    tensors = build_model(load_config(GN_WS)).state_dict()
    file = tmp_path / "published.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": detectron2_to_mmdet(tensors)}, file)
    return file


def test_there_and_back(published, tmp_path, capsys, caplog):
    log._LOG_COUNTER.clear()
    there, back = tmp_path / "there.pth", tmp_path / "back.pth"
    convert(published, there, "--config", GN_WS)
    assert f"written to {there} under detectron2's names" in capsys.readouterr().out
    assert "No GPU" not in caplog.text  # none is needed
    assert "DEVICE: cuda" in Provenance.read(torch.load(there, weights_only=True)).config
    convert("--to", "mmdet", there, back)
    first, last = (torch.load(f, weights_only=True) for f in (published, back))
    assert list(first["state_dict"]) == list(last["state_dict"])
    assert all(torch.equal(t, last["state_dict"][n]) for n, t in first["state_dict"].items())
    assert last["meta"]["dataset_meta"]["classes"] == list("0123456789")
    cfg = load_config(GN_WS)
    Checkpointer(build_model(cfg), cfg=cfg).load(str(there))

    before = there.read_bytes()
    with pytest.raises(SystemExit, match=r"there\.pth exists"):
        convert(published, there)
    assert there.read_bytes() == before


def test_what_does_not_fit_is_not_converted(published, tmp_path):
    target = tmp_path / "target.pth"
    config = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"
    with pytest.raises(SystemExit, match=rf"published\.pth: .*It fits {GN_WS}"):
        convert(published, target, "--config", config)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(published.read_bytes()[:100000])
    with pytest.raises(SystemExit, match=r"cut\.pth cannot be read .*damaged, cut off"):
        convert(cut, target)
    with pytest.raises(SystemExit, match=r"none\.pth does not exist"):
        convert(tmp_path / "none.pth", target)
    assert not target.exists()
