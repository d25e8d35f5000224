"""The types and layouts that CUDA would compute in: forward on tensors that only have shapes."""

from collections import Counter

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS = 28  # of ResNet-18 and FPN; each has a norm


class Operators(TorchDispatchMode):
    """Counts operators on images or weights by name, type, and whether they are channels_last."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        x = args[0] if args else None
        if isinstance(x, torch.Tensor) and x.dim() > 1:
            is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            self.seen[func._schema.name.partition("::")[2], x.dtype, is_last] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def operators(accelerated, monkeypatch):
    """Of the backbone on fake CUDA: ``operators(torch.float16, "KEY", "VALUE", ...)``."""
    # autocast asks for a GPU.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)

    def run(precision, *opts):
        backbone = accelerated("Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", *opts).backbone
        with FakeTensorMode(), Operators() as found, torch.autocast("cuda", precision):
            parameters = {
                name: torch.empty_strided(p.shape, p.stride(), device="cuda", requires_grad=True)
                for name, p in backbone.named_parameters()
            }
            image = torch.empty(2, 3, 64, 64, device="cuda")
            features = functional_call(backbone, parameters, image)
        return found.seen, {feature.dtype for feature in features.values()}

    return run


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_autocast_convolves_in_half_and_normalizes_in_float32(operators, precision):
    seen, types = operators(precision)
    assert seen["convolution", precision, False] == CONVOLUTIONS
    assert seen["native_group_norm", torch.float32, False] == CONVOLUTIONS
    assert seen["mean", torch.float32, False] >= CONVOLUTIONS  # of the weights
    assert not {"mean", "sub", "div"} & {name for name, type, _ in seen if type == precision}
    assert types == {torch.float32}


def test_fused_norms_take_half_and_keep_channels_last(operators):
    # Without a GPU, torch takes bfloat16 for a type that cuDNN lacks, and computes in NCHW.
    opts = ["MODEL.CHANNELS_LAST", "True", "MODEL.GN.FUSE_RELU", "always"]
    seen, _ = operators(torch.float16, *opts)
    fused = seen["group_norm_relu", torch.float16, True]
    assert fused == 17
    # Shortcuts and FPN have no ReLU. CUDA's own norm returns NCHW, which a convolution copies.
    # torch 2.11 copies its input to NCHW before the operator, torch 2.14 inside it.
    norms = [seen["native_group_norm", torch.float32, is_last] for is_last in (False, True)]
    assert sum(norms) == CONVOLUTIONS - fused
    assert seen["convolution", torch.float16, True] >= CONVOLUTIONS - 4
