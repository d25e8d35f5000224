"""The config and the weights where the user has chosen none."""

import pytest
import torch
from coco_files import config, make_coco
from detectron2.modeling import build_backbone, build_model
from server import running, send

from gnws_d2 import load_config
from gnws_d2.checkpoint import Checkpointer
from gnws_d2.config import CONFIG_ROOT
from gnws_d2.model_zoo.fetch import MIRROR_VARIABLE, cached
from gnws_d2.model_zoo.published import find
from gnws_d2.projects.own_data import choose_config, why_chosen
from gnws_d2.projects.own_data.choose import BACKBONE, DETECTOR, RANDOM, start_of

NAMES = {
    False: "faster-rcnn_r50_fpn_gn_ws-all_1x_coco",
    True: "mask-rcnn_r50_fpn_gn_ws-all_2x_coco",
}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("where", ["nowhere", "folder", "converted", "address", "no server"])
def test_a_published_detector_is_fine_tuned_where_it_can_be_had(
    tmp_path, monkeypatch, masks, where
):
    file, detector = str(make_coco(tmp_path, masks=masks)), find(NAMES[masks])
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setenv("GNWS_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(MIRROR_VARIABLE, str(mirror))
    with running() as server:
        server.answers[f"/{detector.file_name}"] = [send(bytes(10**6))]
        made = {"folder": mirror / detector.file_name, "converted": cached(detector)}
        if where in made:
            made[where].parent.mkdir(parents=True, exist_ok=True)
            made[where].touch()
        if where == "address":
            monkeypatch.setenv(MIRROR_VARIABLE, server.url)
        if where == "no server":
            monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:9")
        chosen = choose_config([file])
    is_had = where in ("folder", "converted", "address")
    depth = 50 if is_had else 18
    cfg = load_config(chosen, ["MODEL.DEVICE", "cpu"])
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.MASK_ON) == (depth, masks)
    assert cfg.MODEL.WEIGHTS == ("" if not is_had else detector.uri)
    said = why_chosen(str(CONFIG_ROOT / chosen))
    assert said.endswith(f"gnws zoo prefetch {detector.name}") if not is_had else not said
    # Weights of one's own are those of the small model.
    assert "R_18" in choose_config([file], "cpu", "model_final.pth")


def test_what_a_file_is_follows_from_its_tensors(tmp_path):
    cfg = config("mine.json", name="Small/faster_rcnn_R_18_FPN_gn_ws.yaml")
    torch.save(build_backbone(cfg).bottom_up.state_dict(), tmp_path / "resnet18.pth")
    Checkpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model_final")
    found = [
        start_of(str(weights))
        for weights in (
            "",
            tmp_path / "resnet18.pth",
            f"{tmp_path}/resnet18.pth?matching_heuristics=True",
            "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
            tmp_path / "model_final.pth",
            f"gnws://{NAMES[False]}",
        )
    ]
    assert found == [RANDOM, BACKBONE, BACKBONE, BACKBONE, DETECTOR, DETECTOR]
