"""LazyConfigs by name, and overrides that must hit a key."""

import pytest
from detectron2.config import LazyConfig

from gnws_d2.errors import ConfigError
from gnws_d2.projects.detection.lazy_config import load_lazy_config

FCOS = "Digits/fcos_R_18_FPN_gn_ws.py"


def test_overrides_set_what_detectron2_sets():
    opts = ["train.max_iter=5", "optimizer.lr=0.5", "model.parts=[stem,backbone]"]
    opts += ["dataloader.train.mapper.augmentations.0.short_edge_length=64"]
    cfg, expected = load_lazy_config(FCOS, opts), load_lazy_config(FCOS)
    LazyConfig.apply_overrides(expected, opts)
    assert cfg == expected and cfg.train.max_iter == 5
    assert cfg.dataloader.train.mapper.augmentations[0].short_edge_length == 64


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.max_itre=5", r"no key train\.max_itre\. Did you mean train\.max_iter"),
        ("trian.max_iter=5", r"no key trian\.max_iter.* write \+trian\.max_iter=5"),
        ("train.max_iter.x=5", r"no key train\.max_iter\.x"),
        ("dataloader.train.mapper.augmentations.7.x=5", "augmentations.7.x"),
        ("train.max_iter", "has the form key=value; found 'train.max_iter'"),
        ("MODEL.WEIGHTS", "has the form key=value"),
        ("train.max_iter=[5", "the overrides"),
        ("~train.max_iter=5", "the config has no key ~train"),
        ("+train.max_iter.x=5", "the overrides"),
    ],
)
def test_an_override_that_hits_no_key_is_an_error(word, message):
    with pytest.raises(ConfigError, match=message):
        load_lazy_config(FCOS, ["train.output_dir=x", word])


def test_a_plus_adds_a_key():
    cfg = load_lazy_config(FCOS, ["+train.seed=7", "+mine.size=3"])
    assert cfg.train.seed == 7 and cfg.mine.size == 3


def test_yaml_is_refused_unread(tmp_path):
    file, made = tmp_path / "config.yaml", tmp_path / "made"
    file.write_text(f"train: !!python/object/apply:os.mkdir ['{made}']\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is not a \.py file"):
        load_lazy_config(str(file))
    assert not made.exists()
