"""The measures of smoothness against functions whose constants are known."""

import itertools

import pytest
import torch
from classifier import batches, build_classifier, load
from experiment import MOVING_SPEED, Job
from smoothness import observe_model, removed_shares, smoothness_along_gradient, used_weights
from torch import nn
from torch.nn import functional as F

from gnws_d2.layers import EstimatedBatchNorm2d, standardize_weight

JOB = Job("smoothness", "GN", batch=2, seed=0, images=16, reference_lr=0.1)


def test_a_quadratic_along_its_steepest_direction():
    """Of f = w.A.w / 2 at an eigenvector, the smoothness is the eigenvalue; f(w - a g) is known."""
    values = torch.tensor([0.5, 3.0, 10.0], dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    matrix = basis @ torch.diag(values) @ basis.T
    for i, value in enumerate(values):
        w = basis[:, i].clone().requires_grad_()
        found = smoothness_along_gradient(lambda w=w: w @ matrix @ w / 2, [w], [1.0], [0.1, 0.2])
        assert found.beta == pytest.approx(value.item())
        assert found.gradient == pytest.approx(value.item())
        assert found.gradient_change == pytest.approx(0.2 * value.item())
        # The way leads straight to the minimum, 1 away: f is (1 - d)^2 of its beginning.
        assert found.loss_range == pytest.approx(value.item() / 2 * (1 - 0.8**2))
        assert w.detach().equal(basis[:, i])


def test_a_quadratic_in_other_coordinates():
    """In u = w / s the matrix is S A S, and a change of the gradient is linear in the way."""
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    matrix, scales = root @ root.T, [2.0, 0.5]
    parts = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (2, 3)]

    def loss() -> torch.Tensor:
        w = torch.cat(parts)
        return w @ matrix @ w / 2

    scale = torch.tensor([2.0, 2.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    scaled = scale[:, None] * matrix * scale
    direction = scale * (matrix @ torch.cat(parts).detach())
    expected = (scaled @ direction).norm() / direction.norm()
    found = smoothness_along_gradient(loss, parts, scales, [0.01, 0.3])
    assert found.beta == pytest.approx(expected.item())
    assert found.gradient == pytest.approx(direction.norm().item())
    assert found.beta <= torch.linalg.matrix_norm(scaled, 2)  # the Lipschitz constant itself


def test_where_the_gradient_is_zero():
    w = torch.zeros(2, requires_grad=True)
    assert smoothness_along_gradient(lambda: w.square().sum(), [w], [1.0], [0.1]).beta == 0


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


def test_relative_figures_do_not_depend_on_the_scale_of_weights():
    one, three = (observe_model(model_of("GN", scale), seen(), lr=0.1) for scale in (1, 3))
    for name in ("beta", "loss_range", "gradient"):
        assert three[f"relative_{name}"] == pytest.approx(one[f"relative_{name}"], rel=1e-6)
    assert three["raw_gradient"] == pytest.approx(one["raw_gradient"] / 3, rel=1e-6)
    assert three["weight_norm"] == pytest.approx(3 * one["weight_norm"])


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


def test_used_weights_are_those_that_the_model_computes_with():
    model = model_of("GN+WS")
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    images, labels = seen()[0]
    with used_weights(convs) as used:
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), used)
    assert all(w.equal(standardize_weight(c.weight)) for w, c in zip(used, convs, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not any("_conv_forward" in vars(conv) for conv in convs)
