"""The published configs with nothing but Detectron2: a plain get_cfg(), its trainer, its predictor
and its tools/train_net.py, after ``import gnws_d2``."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultPredictor, DefaultTrainer

import gnws_d2
from gnws_d2 import StandardizationReport
from gnws_d2.config import CONFIG_ROOT

MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
PUBLISHED = [f for f in CONFIG_ROOT.glob("COCO-*/*_gn*.yaml") if "bcn" not in f.name]
PARTS = {"stem", "backbone", "fpn", "box_head", "mask_head"}
# Keys of Detectron2 alone, for steps of a second.
SMALL = [
    *("DATASETS.TRAIN", "('digits_train',)", "DATASETS.TEST", "('digits_val',)"),
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "10", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MASK_FORMAT", "bitmask"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.MAX_ITER", "1"),
    *("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "DATALOADER.NUM_WORKERS", "0"),
    *("TEST.DETECTIONS_PER_IMAGE", "5", "VIS_PERIOD", "0", "SEED", "1"),
]


def read(file: Path, *opts: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(file))
    cfg.merge_from_list(opts)
    return cfg


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_a_plain_config_reads_it(file, tmp_path):
    cfg = read(file)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = read(tmp_path / "config.yaml")
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


@pytest.mark.slow
def test_the_default_trainer_and_the_default_predictor(tmp_path):
    cfg = read(CONFIG_ROOT / MASK, *SMALL, "OUTPUT_DIR", str(tmp_path))
    trainer = DefaultTrainer(cfg)
    assert set(StandardizationReport.of(trainer.model).standardized) == PARTS
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * len(before)

    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    found = DefaultPredictor(cfg)(image)["instances"]
    assert len(found) == 5 and found.scores.isfinite().all() and found.has("pred_masks")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tools") is None,
    reason="this Detectron2 came without its tools/, which the copy on PyPI has",
)
def test_detectron2_s_train_net(tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(
        "import runpy, gnws_d2; runpy.run_module('tools.train_net', run_name='__main__')"
    )
    words = ["--config-file", CONFIG_ROOT / MASK, *SMALL, "OUTPUT_DIR", out]
    done = processes.run(program, *words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any("segm/AP" in line for line in lines)
    # Its dumped config is read by a plain get_cfg(), and by this package.
    assert read(out / "config.yaml").MODEL.BACKBONE.NAME == "build_ws_resnet_fpn_backbone"
    assert gnws_d2.load_config(out / "config.yaml").MODEL.ROI_HEADS.NUM_CLASSES == 10
