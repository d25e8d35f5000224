"""Channels last changes where numbers lie, and nothing else."""

import torch
from detectron2.modeling import build_model
from torch import nn

from gnws_d2.layers import StandardizedConv

MASK_RCNN = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"


def is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def test_the_whole_model_is_channels_last(tiny_config):
    model = build_model(tiny_config(MASK_RCNN, "MODEL.CHANNELS_LAST", "True")).eval()
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
    # RoIAlign hands on none; the first convolution of a head makes it channels_last again.
    heads = [out for name, (_, out) in seen.items() if not name.startswith("backbone")]
    assert len(heads) > 4 and all(is_last(out) for out in heads)


def test_the_results_and_the_names_stay(tiny_config):
    torch.manual_seed(0)
    plain = build_model(tiny_config(MASK_RCNN)).eval()
    last = build_model(tiny_config(MASK_RCNN, "MODEL.CHANNELS_LAST", "True")).eval()
    last.load_state_dict(plain.state_dict())
    assert list(last.state_dict()) == list(plain.state_dict())
    assert is_last(last.backbone.bottom_up.stem.conv1.weight)  # loading has not changed it
    x = torch.randn(2, 3, 64, 96)
    ours, theirs = last.backbone(x), plain.backbone(x)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)
