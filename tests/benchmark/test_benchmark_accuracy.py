"""An inaccurate variant is not timed."""

import pytest
import torch
from accuracy import check, small_step
from variants import OURS, VARIANTS, Case, build, initial_state

from gnws_d2.errors import GnwsError

VARIANT = next(v for v in VARIANTS if v.name == OURS)


def test_a_wrong_model_is_an_error(small):
    case = Case("backbone", small, (64, 64), "train")
    state = initial_state(case)
    expected = small_step(build(VARIANT, case, state, exact=True), case)
    model = build(VARIANT, case, state)
    errors = check(OURS, case, small_step(model, case), expected)
    assert errors.output < 3e-5 and errors.gradient < 1e-3
    norm = model.backbone.bottom_up.res3[0].conv1.norm
    # Values, gradients alone, and what is no number.
    for change in (lambda y: y + 0.1, lambda y: 2 * y - y.detach(), lambda y: y * torch.nan):
        hook = norm.register_forward_hook(lambda _, __, out, change=change: change(out))
        with pytest.raises(GnwsError, match=r"GN\+WS, Case.*Errors\(output="):
            check(OURS, case, small_step(model, case), expected)
        hook.remove()
