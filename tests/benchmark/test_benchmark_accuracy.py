"""An inaccurate variant is not timed."""

import accuracy
import pytest
import torch
from accuracy import TOLERANCE, Errors, InaccurateError, Reference, check, within
from baselines import use_formula
from case import Case
from torch import nn
from variants import OURS, VARIANTS, build, build_reference, initial_state

VARIANT = next(v for v in VARIANTS if v.name == OURS)


@pytest.fixture(scope="module")
def compared(small) -> tuple[Case, dict, Reference]:
    case = Case("backbone", small, (64, 64), 1, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "SIZE", (64, 64))
        state = initial_state(case)
        yield case, state, Reference(build_reference(VARIANT, case, state), case)


def biased(weight: torch.Tensor) -> torch.Tensor:
    """Weight Standardization, but for the biased deviation."""
    mean = weight.mean((1, 2, 3), keepdim=True)
    std = weight.std((1, 2, 3), correction=0, keepdim=True)
    return (weight - mean) / (std + 1e-5)


def use_biased(model: nn.Module) -> None:
    use_formula(model, biased)


def change_a_norm(model: nn.Module) -> None:
    """Each layer alone stays as it is."""
    with torch.no_grad():
        model.backbone.bottom_up.res3[0].conv1.norm.weight[0] += 0.1


def double_a_gradient(model: nn.Module) -> None:
    """The values stay as they are."""
    model.backbone.bottom_up.res3[0].conv1.norm.register_forward_hook(
        lambda _, __, out: 2 * out - out.detach()
    )


def test_the_right_model_passes(compared):
    case, state, reference = compared
    errors = check(OURS, build(VARIANT, case, state), reference, case)
    assert errors.layer < 1e-6 and errors.output < 3e-5 and errors.gradient < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (use_biased, r"GN\+WS.*the layer error"),
        (change_a_norm, "the output error"),
        (double_a_gradient, "the gradient error"),
    ],
)
def test_a_wrong_model_fails(compared, change, message):
    case, state, reference = compared
    model = build(VARIANT, case, state)
    change(model)
    with pytest.raises(InaccurateError, match=message):
        check(OURS, model, reference, case)


def test_nan_fails():
    case = Case("backbone", "a model", (64, 64), 1, "train")
    with pytest.raises(InaccurateError, match="nan"):
        within(OURS, case, Errors(0.0, float("nan"), None))
    assert set(TOLERANCE) == {"fp32", "tf32", "bf16"}
