"""Every config is read, and what is mistyped or cannot work is named with the fix."""

import hashlib
from pathlib import Path

import detectron2
import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.utils import logger as log

from gnws_d2 import load_config
from gnws_d2.checkpoint.structure import build_on_meta
from gnws_d2.config import CONFIG_ROOT, config_text, is_packaged, portable_config
from gnws_d2.engine import Trainer
from gnws_d2.errors import ConfigError
from gnws_d2.modeling import StandardizationReport, standardize
from gnws_d2.projects.own_data import explicit_keys

MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_gn_ws_2x.yaml"
FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"


def test_the_digests_are_those_of_the_packaged_configs(tmp_path):
    """Made by: cd configs && sha256sum *.yaml */*.yaml */*.py > SHA256SUMS"""
    found = {
        str(file.relative_to(CONFIG_ROOT)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in [*CONFIG_ROOT.rglob("*.yaml"), *CONFIG_ROOT.rglob("*.py")]
    }
    lines = (CONFIG_ROOT / "SHA256SUMS").read_text().splitlines()
    assert {line.split()[1]: line.split()[0] for line in lines} == found
    mine = tmp_path / "mine.yaml"
    mine.write_bytes((CONFIG_ROOT / MASK_RCNN).read_bytes())
    assert is_packaged(CONFIG_ROOT / MASK_RCNN) and not is_packaged(mine)


ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
OF_ZOO = sorted(str(file.relative_to(ZOO)) for file in ZOO.rglob("*.yaml"))


@pytest.mark.parametrize("name", OF_ZOO)
def test_a_config_of_detectron2_is_read_as_by_detectron2(name, caplog):
    stock = get_cfg()
    stock.merge_from_file(str(ZOO / name), allow_unsafe=True)
    cfg = load_config(ZOO / name)
    cfg.MODEL.DEVICE = stock.MODEL.DEVICE
    assert portable_config(cfg) == stock


@pytest.mark.slow
def test_the_models_of_detectron2_s_configs_are_built_and_standardized():
    built = set()
    for name in OF_ZOO:
        cfg = load_config(ZOO / name)
        if cfg.MODEL.dump() in built or any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
            continue  # deformable convolutions need a compiled Detectron2
        built.add(cfg.MODEL.dump())
        model = standardize(build_on_meta(cfg))
        rows = StandardizationReport.of(model).rows
        assert any(row.standardized for row in rows), name
        assert all(row.standardized == row.normalized for row in rows), name
    assert len(built) > 40


ARITHMETIC = {
    "[[x, x * 2**(1.0/3)] for x in [32, 64]]": [[32, 32 * 2 ** (1 / 3)], [64, 64 * 2 ** (1 / 3)]],
    "[2**5, -(7 // 2), (1.5 + 2) * 2, 7 % 4]": [32, -3, 7.0, 3],
    **dict.fromkeys([
        *("__import__('os').mkdir('made')", "().__class__", "(lambda: 1)()", "[].append(1)", "x"),
        *("9**9**9**9", "(((10**99)**99)**99)**99", "[0] * 10**10", "[1 for x in range(9)]"),
        *("'a' * 10**9", "f'{1:>1000000000}'", "'%999999999d' % 1", "1/0", "1, 2", "", "["),
        "[[[[x for x in N] for x in N] for x in N] for x in N]".replace("N", str([0] * 40)),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("expression", ARITHMETIC)
def test_arithmetic_in_a_config_is_evaluated_and_nothing_else(tmp_path, monkeypatch, expression):
    monkeypatch.chdir(tmp_path)
    text = f"!!python/object/apply:eval [{yaml.dump(expression, width=999).splitlines()[0]}]"
    Path("mine.yaml").write_text(f"MODEL: {{ANCHOR_GENERATOR: {{SIZES: {text}}}}}")
    if ARITHMETIC[expression]:
        sizes = load_config("mine.yaml").MODEL.ANCHOR_GENERATOR.SIZES
        assert sizes == ARITHMETIC[expression]
    else:
        with pytest.raises(ConfigError, match=r"mine\.yaml"):
            load_config("mine.yaml")
        assert not Path("made").exists()


def add_mine(cfg: CfgNode) -> None:
    cfg.MINE = CfgNode({"USED": False, "SIZE": 3})


def test_a_portable_config_keeps_the_added_keys_that_are_set(tmp_path):
    saved = load_config("", ["MODEL.BCN.SCHEDULE", "constant", "MINE.SIZE", "4"], [add_mine])
    portable = portable_config(saved)
    assert portable.MODEL.BCN == {"SCHEDULE": "constant"} and portable.MINE == {"SIZE": 4}
    assert "WS" not in portable.MODEL and "MINE" in saved and "WS" in saved.MODEL
    (tmp_path / "config.yaml").write_text(portable.dump())
    restored = load_config(tmp_path / "config.yaml", (), [add_mine])
    assert yaml.safe_load(restored.dump()) == yaml.safe_load(saved.dump())


def test_the_config_of_a_run_is_read_by_plain_detectron2_and_keeps_all_keys(tmp_path):
    opts = ["DATASETS.CLASSES", str(["a: b", "#| c"]), "DATASETS.CATEGORY_IDS", "[1, 7]"]
    opts += ["TEST.PRECISION", "bfloat16"]
    saved = load_config("Small/mask_rcnn_R_18_FPN_gn_ws.yaml", [*opts, "MODEL.WEIGHTS", ""])
    (tmp_path / "config.yaml").write_text(config_text(saved))
    (tmp_path / "mine.yaml").write_text("_BASE_: config.yaml\nSOLVER: {BASE_LR: 0.5}\n")
    for file, rate in (("config.yaml", saved.SOLVER.BASE_LR), ("mine.yaml", 0.5)):
        saved.SOLVER.BASE_LR = rate
        restored = load_config(tmp_path / file)
        assert yaml.safe_load(restored.dump()) == yaml.safe_load(saved.dump())
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert DefaultPredictor(cfg).model.roi_heads.num_classes == saved.MODEL.ROI_HEADS.NUM_CLASSES
    pointrend = load_config("Digits/pointrend_R_18_FPN_gn_ws.yaml", opts)
    cfg = get_cfg()
    add_pointrend_config(cfg)  # keys of others stay where they are
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(config_text(pointrend))))
    assert cfg.MODEL.POINT_HEAD == pointrend.MODEL.POINT_HEAD


def test_a_key_that_was_removed_is_ignored_with_a_warning(tmp_path, caplog):
    old = tmp_path / "old.yaml"
    old.write_text("SOLVER:\n  ACCUMULATION_NORMALIZER: batch\n  BASE_LR: 0.3\n")
    cfg = load_config(old, ["SOLVER.ACCUMULATION_NORMALIZER", "micro_batch"])
    assert cfg.SOLVER.BASE_LR == 0.3 and "ACCUMULATION_NORMALIZER" not in cfg.SOLVER
    assert caplog.text.count("Deprecated config key (ignoring): SOLVER.ACCUMULATION_NORM") == 2


def test_projects_of_detectron2_are_known_where_they_are_named():
    assert "POINT_HEAD" not in load_config(MASK_RCNN).MODEL
    assert load_config("Digits/pointrend_R_18_FPN_gn_ws.yaml").MODEL.POINT_HEAD.NUM_CLASSES == 10
    assert load_config("", ["MODEL.RESNETS.STEM_TYPE", "deeplab"]).MODEL.RESNETS.RES4_DILATION == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_device_is_the_cpu_and_one_line_says_so(caplog):
    log._LOG_COUNTER.clear()
    for device in ("cuda:0", "cuda"):
        assert load_config(MASK_RCNN, ["MODEL.DEVICE", device]).MODEL.DEVICE == "cpu"
    lines = [r.getMessage() for r in caplog.records if "No GPU found" in r.getMessage()]
    assert lines == ["No GPU found: MODEL.DEVICE is set to cpu."]


def test_whole_numbers_and_single_names_are_taken(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("SOLVER: {BASE_LR: 1, EPOCHS: 3}\nDATASETS: {TRAIN: mine}\n")
    cfg = load_config(file, ["TEST.EVAL_EPOCHS", "2", "DATASETS.TEST", "other"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.EPOCHS, cfg.TEST.EVAL_EPOCHS) == (1.0, 3.0, 2.0)
    assert cfg.DATASETS.TRAIN == ("mine",) and cfg.DATASETS.TEST == ("other",)


def test_a_packaged_base_is_found_by_name_after_a_file_beside_the_config(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f'_BASE_: "{FASTER_RCNN}"\nSOLVER: {{BASE_LR: 0.5}}\n')
    cfg = load_config(mine)
    assert cfg.SOLVER.BASE_LR == 0.5 and cfg.MODEL.FPN == load_config(FASTER_RCNN).MODEL.FPN
    mine.write_text('_BASE_: "Base-RCNN-FPN-GN-WS.yaml"')
    assert load_config(mine).MODEL.FPN.NORM == "GN"
    mine.write_text(f'_BASE_: "{FASTER_RCNN}"')
    (tmp_path / "COCO-Detection").mkdir()
    (tmp_path / FASTER_RCNN).write_text("SOLVER: {MAX_ITER: 7}\n")
    cfg = load_config(mine)
    assert cfg.SOLVER.MAX_ITER == 7 and cfg.MODEL.FPN.NORM == ""


WRONG = {
    "unknown key": (["MODEL.WS.PART", "['fpn']"], ["no key MODEL.WS.PART.", "MODEL.WS.PARTS"]),
    "a key below a value": (["SOLVER.MAX_ITER.X", "1"], ["SOLVER.MAX_ITER.X"]),
    "value of another type": (["SOLVER.MAX_ITER", "'soon'"], ["SOLVER.MAX_ITER", "soon"]),
    "a value for a section": (["MODEL.RESNETS", "50"], ["MODEL.RESNETS 50", "Type mismatch"]),
    "no value": (["SOLVER.MAX_ITER"], ["pairs", "SOLVER.MAX_ITER"]),
    "another choice": (["DATALOADER.FILTER", "coco"], ["is 'coco'", '"mmdetection" or "det']),
    "another precision": (["TEST.PRECISION", "half"], ["'half'", '"float32", "bfloat16" or "fl']),
    "too few": (["SOLVER.ACCUMULATION_STEPS", "0"], ["ACCUMULATION_STEPS is 0", "1 or more"]),
    "a negative length": (["SOLVER.EPOCHS", "-1"], ["SOLVER.EPOCHS is -1.0. Set it to 0 or more"]),
    "not a number": (["SOLVER.EPOCHS", "1e999-1e999"], ["SOLVER.EPOCHS"]),
    "unread parts": (["MODEL.WS.PARTS", "['fpn']"], ["META_ARCHITECTURE", "WeightStandardizedM"]),
}


@pytest.mark.parametrize(("opts", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_override_is_named_with_the_fix(opts, said):
    with pytest.raises(ConfigError) as error:
        load_config(MASK_RCNN, opts)
    message = str(error.value)
    assert all(words in message for words in said) and "\n" not in message, message


FILES = {
    "code": "OUTPUT_DIR: !!python/object/apply:os.mkdir [made]\n",
    "broken": "MODEL: [1, 2\n",
    "empty": "",
    "a list": "- MODEL\n",
    "a word": "MODEL",
    "a date": "OUTPUT_DIR: 2020-01-01\n",
    "a key that does not exist": "MODEL: {RESNETS: {NORMS: GN}}\n",
    "a number for a key": "SOLVER: {1: 2}\n",
    "a value for a section": "MODEL: 5\n",
    "null for a section": "MODEL: null\n",
    "another version": "VERSION: 1\n",
    "no base": "_BASE_: none.yaml\n",
    "a base that is no name": "_BASE_: {a: 1}\n",
    "based on itself": "_BASE_: mine.yaml\n",
    "nested": "A: " + "[" * 20_000,
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_wrong_file_is_named_in_one_line(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"(mine|none)\.yaml") as error:
        load_config(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert not Path("made").exists()


def test_other_projects_values_and_keys_are_taken(tmp_path):
    """TridentNet's -1, and a node that allows new keys."""

    def add_config(cfg: CfgNode) -> None:
        cfg.MODEL.TRIDENT = CfgNode({"TEST_BRANCH_IDX": 1})
        cfg.MODEL.FREE = CfgNode(new_allowed=True)

    file = tmp_path / "mine.yaml"
    file.write_text("MODEL: {TRIDENT: {TEST_BRANCH_IDX: -1}, FREE: {ANY: {B: 2}}}\n")
    cfg = load_config(file, ["MODEL.FREE.ANY.B", "5"], [add_config])
    file.write_text(config_text(cfg))
    for read in (cfg, load_config(file, [], [add_config])):
        assert read.MODEL.TRIDENT.TEST_BRANCH_IDX == -1 and read.MODEL.FREE.ANY.B == 5


def test_a_base_of_several_files_is_read_once(tmp_path):
    """Read for each of them, the first would be read 2**40 times."""
    (tmp_path / "0.yaml").write_text("SEED: 3\nSOLVER: {MAX_ITER: 1}\n")
    for i in range(1, 41):
        base = tmp_path / f"{i}.yaml"
        base.write_text(f"_BASE_: [{i - 1}.yaml, {i - 1}.yaml]\nSOLVER: {{MAX_ITER: {i}}}\n")
    cfg = load_config(base)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (3, 40)
    assert explicit_keys(str(base)) == {"SEED", "SOLVER.MAX_ITER"}


def test_a_name_that_does_not_exist_lists_the_names_that_do():
    with pytest.raises(ConfigError, match="faster_rcnn_R_50_FPN_gn_ws_1x"):
        load_config("COCO-Detection/faster_rcnn_R_18_FPN_gn_ws_1x.yaml")
    for name in ("x" * 5000 + ".yaml", "a\0b.yaml"):
        with pytest.raises(ConfigError, match="is neither a file nor a config"):
            load_config(name)


NOT_BUILT = {
    "a component that does not exist": (["MODEL.BACKBONE.NAME", "mine"], ["'mine'", "BACKBONE"]),
    "a norm that does not exist": (["MODEL.FPN.NORM", "GroupNorm"], ["GroupNorm"]),
    "GN on 48 channels": (["MODEL.FPN.OUT_CHANNELS", "48"], ["48", "divisible"]),
    "a depth that does not exist": (["MODEL.RESNETS.DEPTH", "17"], ["17"]),
    "a depth of other widths": (["MODEL.RESNETS.DEPTH", "18"], ["RES2_OUT_CHANNELS"]),
    "BCN in a model of Detectron2 alone": (
        ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NORM", "BCN"],
        ["BCN", "WeightStandardizedModel"],
    ),
}


@pytest.mark.parametrize(("opts", "said"), NOT_BUILT.values(), ids=NOT_BUILT)
def test_what_cannot_be_built_is_an_error_of_the_config(opts, said):
    with pytest.raises(ConfigError) as error:
        Trainer.build_model(load_config(MASK_RCNN, [*opts, "MODEL.DEVICE", "cpu"]))
    message = str(error.value)
    assert all(words in message for words in said) and "\n" not in message, message
