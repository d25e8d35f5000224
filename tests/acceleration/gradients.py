"""The gradients of a module, and how far two sets of them may differ."""

import torch
from torch import nn


def gradients(module: nn.Module, x: torch.Tensor, autocast: bool = False) -> dict:
    """Of its trained parameters by name, where those of its outputs go from -1 to 1: the mean
    square of a normalized output would have none."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = module(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    slopes = [torch.linspace(-1, 1, y.numel()).view(y.shape).to(y) for y in outputs]
    torch.autograd.backward(outputs, slopes)
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


def assert_same(found: dict, expected: dict, tolerance: float = 0.0) -> None:
    """``tolerance`` is relative to the largest value of each tensor."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max()
        assert error <= tolerance * tensor.abs().max(), (name, float(error), tensor.abs().max())
