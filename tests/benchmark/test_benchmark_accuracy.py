"""A variant that is wrong is not timed."""

import pytest
import torch
from accuracy import TOLERANCE, Errors, InaccurateError, Reference, check, within
from baselines import FormulaConv2d, use_formula
from variants import OURS, PLAIN, build, build_reference, initial_state, variants
from workloads import Case

MODEL = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
STATE: dict = {}


def state() -> dict:
    if not STATE:
        STATE.update(initial_state(MODEL))
    return STATE


def named(name: str, mode: str = "train"):
    return next(v for v in variants(mode) if v.name == name)


@pytest.fixture(scope="module", params=["backbone", "model"])
def reference(request) -> tuple[Reference, Case]:
    case = Case(request.param, MODEL, (64, 64), 1, "train")
    true = build_reference(named(OURS), MODEL, "cpu", True, state())
    return Reference(true, case), case


def biased(weight: torch.Tensor) -> torch.Tensor:
    """Weight Standardization, but for the biased deviation."""
    mean = weight.mean((1, 2, 3), keepdim=True)
    std = weight.std((1, 2, 3), correction=0, keepdim=True)
    return (weight - mean) / (std + 1e-5)


@pytest.mark.slow
def test_what_is_right_passes(reference):
    true, case = reference
    for name in (OURS, PLAIN):
        errors = check(name, build(named(name), MODEL, "cpu", True, state()), true, case)
        assert errors.layer < 1e-5 and errors.output < 1e-5 and errors.gradient < 1e-2


@pytest.mark.slow
def test_another_formula_fails(reference):
    true, case = reference
    model = build(named(OURS), MODEL, "cpu", True, state())
    use_formula(model, biased)
    assert any(isinstance(m, FormulaConv2d) for m in model.modules())
    with pytest.raises(InaccurateError, match=r"layer error.*GN\+WS|GN\+WS.*layer error"):
        check(OURS, model, true, case)


@pytest.mark.slow
def test_another_connection_fails(reference):
    """Each layer by itself is right; one norm has other parameters."""
    true, case = reference
    model = build(named(OURS), MODEL, "cpu", True, state())
    with torch.no_grad():
        model.backbone.bottom_up.res3[0].conv1.norm.weight[0] += 0.1
    with pytest.raises(InaccurateError, match="output error"):
        check(OURS, model, true, case)


@pytest.mark.slow
def test_a_wrong_gradient_fails(reference):
    true, case = reference
    model = build(named(OURS), MODEL, "cpu", True, state())
    model.backbone.bottom_up.res3[0].conv1.norm.register_forward_hook(
        lambda _, __, out: 2 * out - out.detach()  # the same value, twice the gradient
    )
    with pytest.raises(InaccurateError, match="gradient error"):
        check(OURS, model, true, case)


def test_what_is_no_number_fails():
    case = Case("backbone", MODEL, (64, 64), 1, "train")
    with pytest.raises(InaccurateError, match="nan"):
        within(OURS, case, Errors(0.0, float("nan"), None))
    assert set(TOLERANCE) == {"fp32", "tf32", "bf16"}
