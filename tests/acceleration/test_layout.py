"""Channels last changes only where numbers lie; padding leaves few image sizes."""

import pytest
import torch
from torch import nn

from gnws_d2.errors import ConfigError
from gnws_d2.layers import StandardizedConv

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def test_the_whole_model_is_channels_last_and_computes_the_same(accelerated):
    torch.manual_seed(0)
    plain = accelerated(MASK_RCNN).eval()
    model = accelerated(MASK_RCNN, "MODEL.CHANNELS_LAST", "True").eval()
    model.load_state_dict(plain.state_dict())
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert is_last(module.weight)  # loading has not changed it
            if isinstance(module, StandardizedConv):
                assert is_last(module.standardized_weight())
            module.register_forward_hook(lambda _, x, y, n=name: seen.update({n: (x[0], y)}))
    with torch.no_grad():
        model([{"image": torch.zeros(3, 64, 80, dtype=torch.uint8)}])
    stem, _ = seen["backbone.bottom_up.stem.conv1"]
    assert is_last(stem) and stem.shape == (1, 3, 64, 96)
    backbone = [pair for name, pair in seen.items() if name.startswith("backbone")]
    assert len(backbone) > 20 and all(is_last(x) for pair in backbone for x in pair)
    x = torch.randn(2, 3, 64, 96)
    ours, theirs = model.backbone(x), plain.backbone(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("multiple", "sizes"), [(0, {(64, 96), (96, 96), (160, 96)}), (128, {(128, 128), (256, 128)})]
)
def test_sizes(accelerated, multiple, sizes):
    model = accelerated(MASK_RCNN, "INPUT.SIZE_DIVISIBILITY", str(multiple))
    found = set()
    for height in (60, 64, 66, 150):
        batch = [{"image": torch.zeros(3, height, 70)}, {"image": torch.zeros(3, 20, 80)}]
        images = model.preprocess_image(batch)
        assert images.image_sizes == [(height, 70), (20, 80)]
        found.add(tuple(images.tensor.shape[-2:]))
    assert found == sizes


@pytest.mark.parametrize(
    ("name", "multiple", "said"),
    [
        ("mask_rcnn_R_18_FPN_gn_ws", "48", "is 48.*an? FPN, takes multiples of 32"),
        ("mask_rcnn_R_18_FPN_gn_ws", "-32", "is -32"),
        ("deeplab_v3_plus_R_50_gn_ws", "128", "takes none"),
    ],
)
def test_a_multiple_that_the_backbone_does_not_take_is_refused(accelerated, name, multiple, said):
    with pytest.raises(ConfigError, match=said):
        accelerated(f"Digits/{name}.yaml", "INPUT.SIZE_DIVISIBILITY", multiple)
