"""YAML configs: the files they are based on, and files that cannot be one."""

import time

import pytest

from gnws_d2 import load_config
from gnws_d2.config import ConfigError

NAME = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"


def test_a_packaged_config_is_found_by_name_from_anywhere(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f'_BASE_: "{NAME}"\nSOLVER: {{BASE_LR: 0.5}}\n')
    cfg = load_config(mine)
    assert cfg.SOLVER.BASE_LR == 0.5
    assert cfg.MODEL.FPN == load_config(NAME).MODEL.FPN


def test_a_file_beside_the_config_goes_first(tmp_path):
    (tmp_path / "mine.yaml").write_text(f'_BASE_: "{NAME}"\n')
    (tmp_path / "COCO-Detection").mkdir()
    (tmp_path / NAME).write_text("SOLVER: {BASE_LR: 0.7}\n")
    cfg = load_config(tmp_path / "mine.yaml")
    assert cfg.SOLVER.BASE_LR == 0.7 and cfg.MODEL.FPN.NORM == ""


def test_of_several_bases_the_later_one_counts(tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER: {BASE_LR: 0.1, MAX_ITER: 7}\nSEED: 1\n")
    (tmp_path / "b.yaml").write_text("SOLVER: {BASE_LR: 0.2}\nSEED: 2\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nSEED: 3\n")
    cfg = load_config(tmp_path / "mine.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.2, 7, 3)


def test_aliases_and_merge_keys_are_expanded(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "MODEL:\n  ROI_BOX_HEAD: &head {CONV_DIM: 64, NORM: GN}\n"
        "  ROI_MASK_HEAD: {<<: *head, CONV_DIM: 96}\n"
    )
    model = load_config(tmp_path / "mine.yaml").MODEL
    assert (model.ROI_BOX_HEAD.CONV_DIM, model.ROI_BOX_HEAD.NORM) == (64, "GN")
    assert (model.ROI_MASK_HEAD.CONV_DIM, model.ROI_MASK_HEAD.NORM) == (96, "GN")


BOMB = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
)
BAD = {
    "broken": ("MODEL: [1, 2\n", "is not valid YAML"),
    "empty": ("", "is empty or a list"),
    "comments": ("# nothing\n", "is empty or a list"),
    "a list": ("- MODEL\n- SOLVER\n", "is empty or a list"),
    "a word": ("MODEL", "is empty or a list"),
    "two documents": ("SEED: 1\n---\nSEED: 2\n", "is not valid YAML"),
    "bytes": ("SEED: \x00\n", "is not valid YAML"),
    "a tag": ("SEED: !!python/tuple [1]\n", "is not valid YAML"),
    "a date": ("OUTPUT_DIR: 2020-01-01\n", "OUTPUT_DIR with value"),
    "no date": ("OUTPUT_DIR: 2020-13-45\n", "month must be"),
    "a long number": (f"SEED: {'1' * 5000}\n", "is not valid YAML"),
    "a long text": (f"OUTPUT_DIR: {'x' * 30_000}\n", "line 1 is too long"),
    "a long file": ("# \n" * (1 << 19), "too many for a config"),
    "a number for a key": ("SOLVER: {1: 2}\n", "the key '1' in line 1 is not a name"),
    "a key twice": ("SOLVER:\n  BASE_LR: 0.1\n  BASE_LR: 0.2\n", "sets BASE_LR twice .* line 3"),
    "a value for a section": ("MODEL: 5\n", "sets MODEL to 5, but it is a section"),
    "a section for a value": ("SEED: {}\n", "mine.yaml: Type mismatch .* SEED"),
    "an unknown section": ("MODEL: {SEEDS: {A: 1}}\n", "MODEL.SEEDS.A to 1, a key that does not"),
    "null": ("MODEL: {FPN: {NORM: null}}\n", "MODEL.FPN.NORM is null"),
    "null for a section": ("MODEL: null\n", "sets MODEL to None, but it is a section"),
    "not a number": ("SOLVER: {BASE_LR: .nan}\n", "SOLVER.BASE_LR is nan"),
    "no base": ("_BASE_: none.yaml\n", "'none.yaml', which is neither a file beside it nor"),
    "an address": ("_BASE_: https://x/y.yaml\n", "neither a file beside it"),
    "a base that is no name": ("_BASE_: {a: 1}\n", r"_BASE_ is {'a': 1}\. Set it to"),
    "based on itself": ("_BASE_: mine.yaml\n", "leads back"),
    "based on each other": ("_BASE_: other.yaml\n", "leads back"),
    "nested": ("A: " + "[" * 100 + "]" * 100, "nested too deeply"),
    "nested further": ("A: " + "[" * 20_000, "nested too deeply"),
    "a bomb": (BOMB, "more than 100000 parts once its aliases"),
    "a bomb of merge keys": (BOMB.replace("[1,", "[{b: 1},").replace("a8: &a8", "<<:"), "aliases"),
    "an endless alias": ("a: &a [*a]\n", "holds itself"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_what_is_not_a_config_is_said_in_a_line_and_in_time(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("_BASE_: ./mine.yaml\n")
    started = time.process_time()
    with pytest.raises(ConfigError, match=said) as error:
        load_config(tmp_path / "mine.yaml")
    assert time.process_time() - started < 5
    assert len(str(error.value)) < 1000


def test_a_base_of_another_kind_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER: {BASE_LR: 0.1}\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: a.yaml\nSOLVER: 5\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml makes SOLVER a value, but it is a section"):
        load_config(tmp_path / "mine.yaml")


def test_a_name_that_no_file_can_have_is_an_error_like_any_other():
    for name in ("x" * 5000 + ".yaml", "a\0b.yaml"):
        with pytest.raises(FileNotFoundError, match="is neither a file nor a config"):
            load_config(name)
