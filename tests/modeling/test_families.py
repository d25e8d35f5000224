"""Every kind of model is standardized by the same mechanism: it builds, trains and is evaluated."""

import json
from pathlib import Path

import processes
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

from gnws_d2 import StandardizationReport, load_config
from gnws_d2.config import get_config_file
from gnws_d2.engine import Trainer
from gnws_d2.layers import fold

R_18, R_50 = {"stem": 1, "backbone": 19, "fpn": 8}, {"stem": 1, "backbone": 51, "fpn": 8}
# Of each config: standardized convolutions by part, and what its evaluation gives.
FAMILIES = {
    "retinanet_R_18_FPN_gn_ws": ({**R_18, "fpn": 6, "head": 4}, {"bbox"}),
    "cascade_mask_rcnn_R_18_FPN_gn_ws": (
        *({**R_18, "box_head": 6, "mask_head": 2}, {"bbox", "segm"}),
    ),
    "keypoint_rcnn_R_18_FPN_gn_ws": ({**R_18, "box_head": 2}, {"bbox", "keypoints"}),
    "semantic_R_18_FPN_gn_ws": ({**R_18, "sem_seg_head": 7}, {"sem_seg"}),
    "panoptic_fpn_R_18_gn_ws": (
        {**R_18, "box_head": 2, "mask_head": 2, "sem_seg_head": 7},
        {"bbox", "segm", "sem_seg"},
    ),
    "deeplab_v3_plus_R_50_gn_ws": ({"stem": 3, "backbone": 51, "sem_seg_head": 8}, {"sem_seg"}),
    "pointrend_R_18_FPN_gn_ws": ({**R_18, "box_head": 2}, {"bbox", "segm"}),
    "mask_rcnn_R_50_FPN_deform_gn_ws": (
        *({**R_50, "box_head": 2, "mask_head": 2}, {"bbox", "segm"}),
    ),
}


def image(height: int, width: int) -> list[dict]:
    pixels = torch.randint(0, 255, (3, height, width), generator=torch.Generator().manual_seed(0))
    return [{"image": pixels.float(), "height": height, "width": width}]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_it_builds_trains_and_is_evaluated(name, tmp_path):
    standardized, tasks = FAMILIES[name]
    opts = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SEED", "3"]
    opts += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "0"]
    # Untrained, so that everything that can be found is: evaluators say nothing of nothing.
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    cfg = load_config(f"Digits/{name}.yaml", [*opts, "OUTPUT_DIR", str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    trainer = Trainer(cfg)
    rows = StandardizationReport.of(trainer.model).rows
    assert {r.part: r.standardized for r in rows if r.standardized} == standardized
    assert all(r.standardized == r.normalized for r in rows)

    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * len(before)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert set(trainer._last_eval_results) == tasks

    model, inputs = trainer.model.eval(), image(64, 96)
    with torch.no_grad():
        [found], [folded] = model(inputs), fold(model)(inputs)
    assert found.keys() == folded.keys()
    for key, value in found.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, folded[key])
        elif key == "instances":
            assert torch.equal(value.scores, folded[key].scores)


TRAIN_NET = Path(__file__).parents[2] / "projects" / "Detection" / "lazyconfig_train_net.py"


@pytest.mark.slow
def test_a_lazy_config_trains_is_evaluated_and_resumes(tmp_path):
    words = [TRAIN_NET, "--config-file", "Digits/fcos_R_18_FPN_gn_ws.py"]
    opts = [f"train.output_dir={tmp_path / 'out'}", "train.device=cpu", "train.log_period=1"]
    opts += ["dataloader.train.total_batch_size=2"]
    for iterations in (2, 3):
        done = processes.run(*words, "--resume", *opts, f"train.max_iter={iterations}")
        assert done.returncode == 0, done.stderr
    lines = map(json.loads, (tmp_path / "out" / "metrics.json").read_text().splitlines())
    assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1, 2]
    assert "copypaste: Task: bbox" in (tmp_path / "out" / "log.txt").read_text()
    opts += [f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}"]
    done = processes.run(*words, "--eval-only", *opts)
    assert done.returncode == 0, done.stderr


def test_the_lazy_config_describes_the_same_model_as_the_yaml():
    lazy = LazyConfig.load(get_config_file("Digits/mask_rcnn_R_18_FPN_gn_ws.py"))
    model = instantiate(lazy.model)
    counterpart = build_model(load_config("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml")).eval()
    counterpart.load_state_dict(model.state_dict(), strict=True)
    for detector in (model, counterpart):
        detector.roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        [a], [b] = model.eval()(image(96, 64)), counterpart.to(model.device)(image(96, 64))
    assert len(a["instances"]) and torch.equal(a["instances"].scores, b["instances"].scores)
