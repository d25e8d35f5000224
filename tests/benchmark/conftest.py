"""A Mask R-CNN small enough to run all variants of it in seconds."""

from pathlib import Path

import accuracy
import pytest
import workloads

from gnws_d2.config import get_config_file

SMALL = """
_BASE_: {base}
MODEL:
  FPN: {{OUT_CHANNELS: 32}}
  ANCHOR_GENERATOR: {{SIZES: [[8], [16], [32], [48], [64]]}}
  ROI_BOX_HEAD: {{CONV_DIM: 32, FC_DIM: 32}}
  ROI_MASK_HEAD: {{CONV_DIM: 32}}
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> str:
    """The file of its config."""
    file: Path = tmp_path_factory.mktemp("config") / "small.yaml"
    file.write_text(SMALL.format(base=get_config_file("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml")))
    return str(file)


@pytest.fixture(autouse=True, scope="package")
def little_work() -> None:
    """Few boxes, and a small image to compare with float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "SIZE", (64, 64))
        patch.setattr(workloads, "PROPOSALS", 24)
        patch.setattr(workloads, "DETECTIONS", 8)
        yield
