"""MMDetection's own model, where it is installed, detects what ours detects."""

import pytest
import torch
from case import ARCHITECTURES, Case
from detectron2.modeling import build_model
from mmdetection import MMDetection
from runtimes import photograph
from variants import initial_state

from gnws_d2.projects.export import Detector, compare

pytest.importorskip("mmdet")
pytestmark = pytest.mark.slow


@torch.no_grad()
@pytest.mark.parametrize("name", ["faster_rcnn_R_50_FPN", "mask_rcnn_X_50_32x4d_FPN"])
def test_it_detects_the_same(name):
    case = Case("model", name, (160, 224), "infer")
    state = initial_state(case)
    state["roi_heads.box_predictor.cls_score.weight"] *= 10  # or no score is above 0.05
    model = build_model(case.config()).eval()
    model.load_state_dict(state)
    image = photograph(case.size)
    expected = Detector(model)(image)
    found = MMDetection(ARCHITECTURES[name], state)(image)
    assert len(expected[0]) == 100 and compare(expected, found).equal
