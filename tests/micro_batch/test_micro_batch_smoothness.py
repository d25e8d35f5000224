"""The measures of smoothness against functions whose constants are known."""

import itertools

import pytest
import torch
from classifier import batches, build_classifier, load
from experiment import MOVING_SPEED, Job
from smoothness import (
    observe_model,
    removed_shares,
    smoothness_along_gradient,
    with_plain_convolutions,
)
from torch import nn

from gnws_d2.layers import EstimatedBatchNorm2d, standardize_weight

JOB = Job("smoothness", "GN", batch=2, seed=0, images=16, reference_lr=0.1)


def test_a_quadratic():
    """Of w.A.w / 2 in u = w / s: the matrix is S A S, and its gradient is linear in the move."""
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    matrix, scales = root @ root.T, [2.0, 0.5]
    parts = [torch.randn(n, dtype=torch.float64) for n in (2, 3)]
    found = smoothness_along_gradient(
        lambda w: torch.cat(w) @ matrix @ torch.cat(w) / 2, parts, scales, [0.01, 0.03]
    )
    scale = torch.tensor([2.0, 2.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    scaled, u = scale[:, None] * matrix * scale, torch.cat(parts) / scale
    gradient = scaled @ u
    direction = gradient / gradient.norm()
    losses = [(u - d * direction) @ scaled @ (u - d * direction) / 2 for d in (0, 0.01, 0.03)]
    beta = (scaled @ direction).norm().item()
    assert found["loss"] == pytest.approx(losses[0].item())
    assert found["loss_range"] == pytest.approx((max(losses) - min(losses)).item())
    assert found["gradient"] == pytest.approx(gradient.norm().item())
    assert found["gradient_change"] == pytest.approx(0.03 * beta)
    assert found["beta"] == pytest.approx(beta)
    assert beta <= torch.linalg.matrix_norm(scaled, 2)  # the Lipschitz constant itself


def model_of(norm: str, weight_scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = build_classifier(norm).double().train()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= weight_scale
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.eps = 1e-14
        if isinstance(module, EstimatedBatchNorm2d):
            module.moving_speed = MOVING_SPEED
    return model


def seen() -> list:
    return [(x.double(), y) for x, y in itertools.islice(batches(JOB, load("train")), 3)]


def test_relative_numbers_do_not_depend_on_the_scale_of_weights():
    one, three = (observe_model(model_of("GN", scale), seen(), lr=0.1) for scale in (1, 3))
    for name in ("beta", "loss_range", "gradient"):
        assert three[f"relative_{name}"] == pytest.approx(one[f"relative_{name}"], rel=1e-6)
    assert three["raw_gradient"] == pytest.approx(one["raw_gradient"] / 3, rel=1e-6)


@pytest.mark.parametrize("norm", ["BN", "BCN+WS"])
def test_observing_leaves_the_model_as_it_is(norm):
    model = model_of(norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = observe_model(model, seen(), lr=0.1)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert observe_model(model, seen(), lr=0.1) == first


def test_removed_shares_are_what_standardization_removes():
    """The paper's equation: |dL/dw|^2 = (|dL/dW|^2 - mean part - filter part) / std^2."""
    torch.manual_seed(0)
    w = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    used = standardize_weight(w, eps=0.0)
    used.retain_grad()
    (used * torch.randn_like(used)).sum().backward()
    along_mean, along_filter, whole = removed_shares(used.detach(), used.grad)
    left = (whole - along_mean - along_filter) / w.std().square().item()
    assert left == pytest.approx(w.grad.square().sum().item())
    assert along_mean > 0 and along_filter > 0


def test_plain_convolutions_compute_the_same_with_the_weights_that_are_used():
    model, (images, _) = model_of("GN+WS"), seen()[0]
    plain = with_plain_convolutions(model)
    torch.testing.assert_close(plain(images), model(images))
    for used, raw in zip(plain.modules(), model.modules(), strict=True):
        if isinstance(raw, nn.Conv2d):
            assert type(used) is nn.Conv2d and used.weight.equal(standardize_weight(raw.weight))
