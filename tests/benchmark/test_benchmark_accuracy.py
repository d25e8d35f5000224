"""An inaccurate variant is not timed."""

import pytest
import torch
from accuracy import Results, check, small_step
from case import Case
from torch import nn
from variants import OURS, VARIANTS, build, initial_state

from gnws_d2.errors import GnwsError

VARIANT = next(v for v in VARIANTS if v.name == OURS)


@pytest.fixture(scope="module")
def compared(small) -> tuple[Case, dict, Results]:
    case = Case("backbone", small, (64, 64), "train")
    state = initial_state(case)
    return case, state, small_step(build(VARIANT, case, state, exact=True), case)


def change_nothing(norm: nn.Module) -> None:
    pass


def change_the_weight(norm: nn.Module) -> None:
    with torch.no_grad():
        norm.weight[0] += 0.1


def double_the_gradient(norm: nn.Module) -> None:
    """The values stay as they are."""
    norm.register_forward_hook(lambda _, __, out: 2 * out - out.detach())


def return_nan(norm: nn.Module) -> None:
    norm.register_forward_hook(lambda _, __, out: out * torch.nan)


@pytest.mark.parametrize(
    "change", [change_nothing, change_the_weight, double_the_gradient, return_nan]
)
def test_a_wrong_model_is_an_error(compared, change):
    case, state, expected = compared
    model = build(VARIANT, case, state)
    change(model.backbone.bottom_up.res3[0].conv1.norm)
    found = small_step(model, case)
    if change is change_nothing:
        errors = check(OURS, case, found, expected)
        assert errors.output < 3e-5 and errors.gradient < 1e-3
    else:
        with pytest.raises(GnwsError, match=r"GN\+WS, Case.*Errors\(output="):
            check(OURS, case, found, expected)
