"""Which convolutions a config standardizes, and what it refuses."""

import pytest
from detectron2.modeling import build_model
from torch import nn

from gnws_d2 import StandardizationReport
from gnws_d2.engine import Trainer
from gnws_d2.errors import ConfigError
from gnws_d2.modeling.standardize import part_of

ALL = ["stem", "backbone", "fpn", "box_head", "mask_head"]
GN = "Digits/mask_rcnn_R_18_FPN_gn.yaml"
WRAPPED = ["MODEL.META_ARCHITECTURE", "WeightStandardizedModel", "MODEL.WS.PARTS"]


def standardized_parts(model: nn.Module) -> set[str]:
    return {r.part for r in StandardizationReport.of(model).rows if r.standardized}


@pytest.mark.parametrize("parts", [[part] for part in ALL] + [ALL, ["stem", "fpn"], []], ids=str)
def test_parts_are_chosen_one_by_one(tiny_config, parts):
    model = build_model(tiny_config(GN, *WRAPPED, str(parts)))
    assert standardized_parts(model) == set(parts)
    for row in StandardizationReport.of(model).rows:
        assert row.standardized == (row.normalized if row.part in parts else 0), row


def test_the_report_is_logged_at_build_time(tiny_config, caplog):
    caplog.set_level("INFO")
    model = Trainer.build_model(tiny_config())
    assert str(StandardizationReport.of(model)) in caplog.text
    assert "| mask_head |" in caplog.text


BAD = {
    "a part of another model": (
        ["['stem', 'mask_head']", "MODEL.MASK_ON", "False"],
        ["MODEL.WS.PARTS", "'mask_head'", "stem", "box_head"],
    ),
    "a misspelt part": (["['FPN']"], ["MODEL.WS.PARTS", "'FPN'", "fpn"]),
    "a part without a norm": (["['fpn']", "MODEL.FPN.NORM", ""], ["'fpn'", "NORM"]),
    "a part that never has a norm": (["['rpn']"], ["'rpn'", "norm"]),
    "a meta-architecture that does not exist": (
        ["['fpn']", "MODEL.WS.META_ARCHITECTURE", "FasterRCNN"],
        ["MODEL.WS.META_ARCHITECTURE", "'FasterRCNN'", "GeneralizedRCNN"],
    ),
    "itself": (
        ["['fpn']", "MODEL.WS.META_ARCHITECTURE", "WeightStandardizedModel"],
        ["MODEL.WS.META_ARCHITECTURE", "GeneralizedRCNN"],
    ),
}


@pytest.mark.parametrize(("opts", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_standardized_is_refused_with_a_fix(tiny_config, opts, said):
    with pytest.raises(ConfigError) as error:
        build_model(tiny_config(GN, *WRAPPED, *opts))
    assert all(words in str(error.value) for words in said), error.value


def test_part_of():
    for part, names in {
        "stem": ("backbone.bottom_up.stem.conv1", "backbone.stem.conv1", "stem.conv1"),
        "backbone": ("backbone.bottom_up.res4.2.shortcut", "res4.2.conv1"),
        "fpn": ("backbone.fpn_lateral3",),
        "rpn": ("proposal_generator.rpn_head.conv",),
        "box_head": ("roi_heads.box_head.conv1", "roi_heads.box_head.0.conv1"),
        "head": ("head.cls_subnet.0",),
    }.items():
        assert {part_of(name) for name in names} == {part}
