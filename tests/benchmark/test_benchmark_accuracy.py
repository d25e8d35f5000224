"""An inaccurate variant is not timed."""

import pytest
import torch
from accuracy import Results, check, small_step
from torch import nn
from variants import OURS, VARIANTS, Case, build, initial_state

from gnws_d2.errors import GnwsError

VARIANT = next(v for v in VARIANTS if v.name == OURS)


@pytest.fixture(scope="module")
def compared(small) -> tuple[Case, dict, Results]:
    case = Case("backbone", small, (64, 64), "train")
    state = initial_state(case)
    return case, state, small_step(build(VARIANT, case, state, exact=True), case)


def change_the_weight(norm: nn.Module) -> None:
    norm.weight.data[0] += 0.1


def double_the_gradient(norm: nn.Module) -> None:
    """The values stay as they are."""
    norm.register_forward_hook(lambda _, __, out: 2 * out - out.detach())


def return_nan(norm: nn.Module) -> None:
    norm.register_forward_hook(lambda _, __, out: out * torch.nan)


def test_the_right_model_is_accurate(compared):
    case, state, expected = compared
    errors = check(OURS, case, small_step(build(VARIANT, case, state), case), expected)
    assert errors.output < 3e-5 and errors.gradient < 1e-3


@pytest.mark.parametrize("change", [change_the_weight, double_the_gradient, return_nan])
def test_a_wrong_model_is_an_error(compared, change):
    case, state, expected = compared
    model = build(VARIANT, case, state)
    change(model.backbone.bottom_up.res3[0].conv1.norm)
    with pytest.raises(GnwsError, match=r"GN\+WS, Case.*Errors\(output="):
        check(OURS, case, small_step(model, case), expected)
