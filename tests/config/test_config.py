"""Every config of the package can be read, and what cannot work is refused with a fix."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from gnws_d2 import add_gnws_config, load_config
from gnws_d2.checkpoint.structure import build_on_meta
from gnws_d2.config import CONFIG_ROOT, ConfigError, check_config, load, portable_config

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
EVERY = sorted(str(f.relative_to(CONFIG_ROOT)) for f in CONFIG_ROOT.rglob("*.yaml"))


@pytest.mark.parametrize("name", EVERY)
def test_every_config_is_read_and_passes_the_checks(name):
    assert load_config(name).VERSION == 2


def test_the_keys_are_added_to_detectron2_s_config():
    cfg = get_cfg()
    add_gnws_config(cfg)
    assert cfg.MODEL.WS.PARTS == []
    assert cfg.MODEL.WS.META_ARCHITECTURE == "GeneralizedRCNN"


def test_no_other_key_is_changed():
    cfg, stock = get_cfg(), get_cfg()
    cfg.MODEL.DEVICE = stock.MODEL.DEVICE = "cuda:7"
    add_gnws_config(cfg)
    assert portable_config(cfg) == stock


def add_mine(cfg: CfgNode) -> None:
    cfg.MINE = CfgNode({"USED": False, "SIZE": 3})


def test_a_portable_config_that_uses_no_added_key_is_read_by_plain_detectron2(tmp_path):
    opts = ["SOLVER.BASE_LR", "0.3", "DATASETS.TRAIN", "('mine',)"]
    saved = load_config("", opts, [add_mine])
    (tmp_path / "config.yaml").write_text(portable_config(saved).dump())
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    stock = get_cfg()
    stock.merge_from_list([*opts, "MODEL.DEVICE", saved.MODEL.DEVICE])
    assert yaml.safe_load(cfg.dump()) == yaml.safe_load(stock.dump())


def test_a_portable_config_keeps_the_added_keys_that_are_set(tmp_path):
    saved = load_config("", ["MODEL.BCN.SCHEDULE", "constant", "MINE.SIZE", "4"], [add_mine])
    portable = portable_config(saved)
    assert portable.MODEL.BCN == {"SCHEDULE": "constant"} and portable.MINE == {"SIZE": 4}
    assert "WS" not in portable.MODEL and "MINE" in saved and "WS" in saved.MODEL
    (tmp_path / "config.yaml").write_text(portable.dump())
    restored = load_config(tmp_path / "config.yaml", (), [add_mine])
    assert yaml.safe_load(restored.dump()) == yaml.safe_load(saved.dump())


def test_a_key_that_was_removed_is_ignored_with_a_warning(tmp_path, caplog):
    old = tmp_path / "old.yaml"
    old.write_text("SOLVER:\n  ACCUMULATION_NORMALIZER: batch\n  BASE_LR: 0.3\n")
    cfg = load_config(old, ["SOLVER.ACCUMULATION_NORMALIZER", "micro_batch"])
    assert cfg.SOLVER.BASE_LR == 0.3 and "ACCUMULATION_NORMALIZER" not in cfg.SOLVER
    assert caplog.text.count("Deprecated config key (ignoring): SOLVER.ACCUMULATION_NORM") == 2


def test_a_saved_config_is_read_by_any_program_that_adds_the_keys(tmp_path):
    (tmp_path / "config.yaml").write_text(load_config(MASK_RCNN).dump())
    cfg = get_cfg()
    add_gnws_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(cfg.dump()) == yaml.safe_load(load_config(MASK_RCNN).dump())


def test_projects_of_detectron2_are_known_where_they_are_named():
    assert "POINT_HEAD" not in load_config(MASK_RCNN).MODEL
    assert load_config("Digits/pointrend_R_18_FPN_gn_ws.yaml").MODEL.POINT_HEAD.NUM_CLASSES == 10
    assert load_config("", ["MODEL.RESNETS.STEM_TYPE", "deeplab"]).MODEL.RESNETS.RES4_DILATION == 1


@pytest.mark.slow
def test_opencv_is_needed_by_pointrend_alone(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ModuleNotFoundError(\"No module named 'cv2'\")")
    program = """
from gnws_d2 import load_config, model_zoo
from gnws_d2.config import ConfigError
model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml")
try:
    load_config("Digits/pointrend_R_18_FPN_gn_ws.yaml")
except ConfigError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "a key that does not exist" in ended.stdout
    assert "No module named 'cv2'. It needs OpenCV: pip install" in ended.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_device_is_the_cpu_and_one_line_says_so(caplog):
    load._say_that_the_cpu_is_used.cache_clear()
    for device in ("cuda:0", "cuda"):
        assert load_config(MASK_RCNN, ["MODEL.DEVICE", device]).MODEL.DEVICE == "cpu"
    lines = [r.getMessage() for r in caplog.records if "No GPU found" in r.getMessage()]
    assert lines == ["No GPU found: MODEL.DEVICE is set to cpu."]


def test_a_path_and_overrides(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("SOLVER:\n  BASE_LR: 0.1\n  STEPS: (1, 2)\n")
    cfg = load_config(file, ["SOLVER.STEPS", "(3,)"])
    assert cfg.SOLVER.BASE_LR == 0.1 and cfg.SOLVER.STEPS == (3,)


def test_a_name_that_does_not_exist_lists_the_names_that_do():
    with pytest.raises(FileNotFoundError, match="faster_rcnn_R_50_FPN_gn_ws_1x"):
        load_config("COCO-Detection/faster_rcnn_R_18_FPN_gn_ws_1x.yaml")


BAD = {
    "unknown key": (
        ["MODEL.WS.PART", "['fpn']"],
        ["MODEL.WS.PART", "['fpn']", "MODEL.WS.PARTS"],
    ),
    "value of another type": (["SOLVER.MAX_ITER", "'soon'"], ["SOLVER.MAX_ITER", "soon"]),
    "no value": (["SOLVER.MAX_ITER"], ["pairs", "SOLVER.MAX_ITER"]),
    "a key below a value": (["SOLVER.MAX_ITER.X", "1"], ["SOLVER.MAX_ITER.X"]),
    "GN on 48 channels": (
        ["MODEL.FPN.OUT_CHANNELS", "48"],
        ["MODEL.FPN.NORM", "'GN'", "MODEL.FPN.OUT_CHANNELS", "48", "multiple of 32"],
    ),
    "GN on a narrow backbone": (
        ["MODEL.RESNETS.WIDTH_PER_GROUP", "40"],
        ["MODEL.RESNETS.NORM", "'GN'", "MODEL.RESNETS.WIDTH_PER_GROUP", "40"],
    ),
    "GN on a narrow mask head": (
        ["MODEL.ROI_MASK_HEAD.CONV_DIM", "100"],
        ["MODEL.ROI_MASK_HEAD.NORM", "MODEL.ROI_MASK_HEAD.CONV_DIM", "100"],
    ),
    "BCN on 48 channels": (
        ["MODEL.FPN.NORM", "EstBCN", "MODEL.FPN.OUT_CHANNELS", "48"],
        ["MODEL.FPN.NORM", "'EstBCN'", "MODEL.FPN.OUT_CHANNELS", "48", "multiple of 32"],
    ),
    "BCN in a model of Detectron2 alone": (
        [
            *("MODEL.META_ARCHITECTURE", "RetinaNet"),
            *("MODEL.RETINANET.NORM", "BCN"),
        ],
        ["MODEL.RETINANET.NORM", "'BCN'", "MODEL.WS.META_ARCHITECTURE to 'RetinaNet'"],
    ),
    "a moving speed beyond the batch": (
        ["MODEL.BCN.MOVING_SPEED", "1.5"],
        ["MODEL.BCN.MOVING_SPEED", "1.5", "at most 1"],
    ),
    "a schedule that does not exist": (
        ["MODEL.BCN.SCHEDULE", "cosine"],
        ["MODEL.BCN.SCHEDULE", "'cosine'", "constant"],
    ),
    "a norm that does not exist": (
        ["MODEL.FPN.NORM", "GroupNorm"],
        ["MODEL.FPN.NORM", "'GroupNorm'", "'GN'"],
    ),
    "no micro-batches": (
        ["SOLVER.ACCUMULATION_STEPS", "0"],
        ["ACCUMULATION_STEPS is 0", "1 or more"],
    ),
    "micro-batches that do not divide the batch": (
        ["SOLVER.ACCUMULATION_STEPS", "5"],
        ["ACCUMULATION_STEPS is 5", "SOLVER.IMS_PER_BATCH, 16", "divisor of 16"],
    ),
    "micro-batches that do not divide the scaled batch": (
        ["SOLVER.ACCUMULATION_STEPS", "8", "SOLVER.SCALE_TO_BATCH", "4"],
        ["ACCUMULATION_STEPS is 8", "SOLVER.SCALE_TO_BATCH, 4"],
    ),
    "a timeout of none": (["SOLVER.PROCESS_TIMEOUT", "0"], ["PROCESS_TIMEOUT is 0", "from 1 to"]),
    "an endless timeout": (["SOLVER.PROCESS_TIMEOUT", "1e30"], ["PROCESS_TIMEOUT is 1e+30"]),
    "a batch below 0": (["SOLVER.SCALE_TO_BATCH", "-1"], ["SCALE_TO_BATCH is -1", "0 or more"]),
    "a precision that does not exist": (
        ["SOLVER.AMP.DTYPE", "fp8"],
        ["SOLVER.AMP.DTYPE", "'fp8'", '"float16" or "bfloat16"'],
    ),
    "a precision of evaluation that does not exist": (
        ["TEST.PRECISION", "half"],
        ["TEST.PRECISION", "'half'", '"float32", "bfloat16" or "float16"'],
    ),
    "a section set to a value": (["MODEL.RESNETS", "50"], ["MODEL.RESNETS to '50'", "a section"]),
    "null": (["MODEL.RESNETS.DEPTH", "None"], ["MODEL.RESNETS.DEPTH is null"]),
    "an element of another type": (
        ["SOLVER.STEPS", "(1000, 'end')"],
        ["SOLVER.STEPS is (1000, 'end')", "'end' cannot be there"],
    ),
    "not a number": (["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR is inf", "not finite"]),
    "a long number": (["SOLVER.MAX_ITER", "1" + "0" * 400], ["MAX_ITER is 10", "too large"]),
    "too many layers": (["MODEL.ROI_MASK_HEAD.NUM_CONV", "1000000"], ["1000 or less"]),
    "no iterations": (["SOLVER.MAX_ITER", "0"], ["SOLVER.MAX_ITER is 0", "1 or more"]),
    "below 0": (["SOLVER.WEIGHT_DECAY", "-0.1"], ["WEIGHT_DECAY is -0.1", "0 or more"]),
    "not a fraction": (["SOLVER.MOMENTUM", "90.0"], ["MOMENTUM is 90.0", "from 0 to 1"]),
    "a choice that does not exist": (
        ["INPUT.MASK_FORMAT", "rle"],
        ["INPUT.MASK_FORMAT is 'rle'", '"polygon" or "bitmask"'],
    ),
    "a depth that does not exist": (["MODEL.RESNETS.DEPTH", "17"], ["DEPTH is 17", "34, 50"]),
    "an older version": (["VERSION", "1"], ["VERSION is 1", "Set it to 2"]),
    "a literal that cannot be parsed": (["OUTPUT_DIR", "-" * 30_000 + "1"], ["OUTPUT_DIR"]),
    "parts that nobody reads": (
        ["MODEL.WS.PARTS", "['fpn']"],
        ["MODEL.WS.PARTS", "MODEL.META_ARCHITECTURE", "WeightStandardizedModel"],
    ),
}


@pytest.mark.parametrize(("opts", "said"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_refused_with_key_value_and_cure(opts, said):
    with pytest.raises(ConfigError) as error:
        load_config(MASK_RCNN, opts)
    message = str(error.value)
    assert all(words in message for words in said) and len(message) < 1000, message


COMPONENTS = ("BACKBONE.NAME", "ANCHOR_GENERATOR.NAME", "PROPOSAL_GENERATOR.NAME", "RPN.HEAD_NAME")
COMPONENTS += ("ROI_HEADS.NAME", "ROI_BOX_HEAD.NAME", "ROI_MASK_HEAD.NAME", "META_ARCHITECTURE")


@pytest.mark.parametrize("key", COMPONENTS)
def test_a_component_that_is_not_registered_is_refused_with_near_names(key):
    node, name = load_config(MASK_RCNN).MODEL, "Other"
    for word in key.split("."):
        node = node[word]
    for name in ("Other", node + "x"):
        with pytest.raises(ConfigError, match=rf"MODEL\.{key} is '{name}', which is not reg") as e:
            load_config(MASK_RCNN, [f"MODEL.{key}", name])
    assert repr(node) in str(e.value)


def test_a_component_that_is_not_used_need_not_be_registered():
    unused = ["MODEL.MASK_ON", "False", "MODEL.ROI_MASK_HEAD.NAME", "Mine"]
    load_config(MASK_RCNN, [*unused, "MODEL.SEM_SEG_HEAD.NAME", "Mine"])
    load_config(MASK_RCNN, ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"])


def test_a_model_that_cannot_be_built_is_an_error_of_the_config():
    cfg = load_config(MASK_RCNN, ["MODEL.RESNETS.DEPTH", "18"])  # which needs 64 channels
    with pytest.raises(ConfigError, match=r"GeneralizedRCNN cannot be built .*RES2_OUT_CHANNELS"):
        build_on_meta(cfg)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("MODEL:\n  RESNETS:\n    NORMS: GN\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml sets MODEL\.RESNETS\.NORMS to 'GN'.*NORM"):
        load_config(file)


def test_a_config_file_cannot_run_code(tmp_path):
    file = tmp_path / "mine.yaml"
    target = tmp_path / "made"
    file.write_text(f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{target}"]\n')
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_config(file)
    assert not target.exists()


def test_detectron2_s_own_defaults_pass_the_checks():
    cfg = get_cfg()
    add_gnws_config(cfg)
    check_config(cfg)
