"""Pictures are padded to few sizes."""

import pytest
import torch
from detectron2.modeling import build_model

from gnws_d2.config import ConfigError

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


@pytest.mark.parametrize(
    ("multiple", "sizes"), [(0, {(64, 96), (96, 96), (160, 96)}), (128, {(128, 128), (256, 128)})]
)
def test_sizes(tiny_config, multiple, sizes):
    model = build_model(tiny_config(MASK_RCNN, "INPUT.SIZE_DIVISIBILITY", str(multiple)))
    found = set()
    for height in (60, 64, 66, 150):
        batch = [{"image": torch.zeros(3, height, 70)}, {"image": torch.zeros(3, 20, 80)}]
        images = model.preprocess_image(batch)
        assert images.image_sizes == [(height, 70), (20, 80)]
        found.add(tuple(images.tensor.shape[-2:]))
    assert found == sizes


def test_what_the_pyramid_cannot_take_is_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"SIZE_DIVISIBILITY is 48.*of the 32"):
        build_model(tiny_config(MASK_RCNN, "INPUT.SIZE_DIVISIBILITY", "48"))


def test_a_backbone_without_a_pyramid_is_refused(tiny_config):
    cfg = tiny_config("Digits/deeplab_v3_plus_R_50_gn_ws.yaml", "INPUT.SIZE_DIVISIBILITY", "128")
    with pytest.raises(ConfigError, match="backbone is a"):
        build_model(cfg)
