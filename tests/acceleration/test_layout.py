"""Channels last changes only where numbers lie; padding leaves few image sizes."""

import copy

import pytest
import torch
from torch import nn

from gnws_d2.errors import ConfigError
from gnws_d2.layers import StandardizedConv, WSConv2d
from gnws_d2.projects.acceleration import use_channels_last

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def test_the_whole_model_is_channels_last(accelerated):
    model = accelerated(MASK_RCNN, "MODEL.CHANNELS_LAST", "True").eval()
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert is_last(module.weight)
            if isinstance(module, StandardizedConv):
                assert is_last(module.standardized_weight())
            module.register_forward_hook(
                lambda m, args, out, n=name: seen.update({n: (args[0], out)})
            )
    with torch.no_grad():
        model([{"image": torch.zeros(3, 64, 80, dtype=torch.uint8)}])
    stem, _ = seen["backbone.bottom_up.stem.conv1"]
    assert is_last(stem) and stem.shape == (1, 3, 64, 96)
    backbone = [pair for name, pair in seen.items() if name.startswith("backbone")]
    assert len(backbone) > 20 and all(is_last(x) for pair in backbone for x in pair)
    # RoIAlign does not preserve it; the first convolution of a head restores it.
    heads = [out for name, (_, out) in seen.items() if not name.startswith("backbone")]
    assert len(heads) > 4 and all(is_last(out) for out in heads)


def test_the_results_and_the_names_stay(accelerated):
    torch.manual_seed(0)
    plain = accelerated(MASK_RCNN).eval()
    last = accelerated(MASK_RCNN, "MODEL.CHANNELS_LAST", "True").eval()
    last.load_state_dict(plain.state_dict())
    assert list(last.state_dict()) == list(plain.state_dict())
    assert is_last(last.backbone.bottom_up.stem.conv1.weight)  # loading has not changed it
    x = torch.randn(2, 3, 64, 96)
    ours, theirs = last.backbone(x), plain.backbone(x)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_gradients_of_a_convolution_stay(kernel):
    torch.manual_seed(0)
    plain = WSConv2d(8, 6, kernel, stride=2).double()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    for conv in (plain, last):
        conv(x).pow(3).sum().backward()
    torch.testing.assert_close(last.weight.grad, plain.weight.grad)


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


@pytest.mark.parametrize(("multiple", "fix"), [("48", "of the 32"), ("-32", "0 or more")])
def test_what_the_pyramid_cannot_take_is_refused(accelerated, multiple, fix):
    with pytest.raises(ConfigError, match=rf"SIZE_DIVISIBILITY is {multiple}.*{fix}"):
        accelerated(MASK_RCNN, "INPUT.SIZE_DIVISIBILITY", multiple)


def test_a_backbone_without_a_pyramid_is_refused(accelerated):
    with pytest.raises(ConfigError, match="backbone is a"):
        accelerated("Digits/deeplab_v3_plus_R_50_gn_ws.yaml", "INPUT.SIZE_DIVISIBILITY", "128")


def test_channels_last_needs_a_backbone():
    with pytest.raises(ConfigError, match=r"CHANNELS_LAST is True.*a Linear, has no"):
        use_channels_last(nn.Linear(1, 1))
