"""An inaccurate variant is not timed."""

import pytest
import torch
from accuracy import Results, check, small_step
from variants import OURS, VARIANTS, Case, build, initial_state

from gnws_d2.errors import GnwsError

VARIANT = next(v for v in VARIANTS if v.name == OURS)


@pytest.fixture(scope="module")
def compared(small) -> tuple[Case, dict, Results]:
    case = Case("backbone", small, (64, 64), "train")
    state = initial_state(case)
    return case, state, small_step(build(VARIANT, case, state, exact=True), case)


CHANGES = {
    "values": lambda y: y + 0.1,
    "gradients alone": lambda y: 2 * y - y.detach(),
    "nan": lambda y: y * torch.nan,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_wrong_model_is_an_error(compared, change):
    case, state, expected = compared
    model = build(VARIANT, case, state)
    errors = check(OURS, case, small_step(model, case), expected)
    assert errors.output < 3e-5 and errors.gradient < 1e-3
    norm = model.backbone.bottom_up.res3[0].conv1.norm
    norm.register_forward_hook(lambda _, __, out: change(out))
    with pytest.raises(GnwsError, match=r"GN\+WS, Case.*Errors\(output="):
        check(OURS, case, small_step(model, case), expected)
