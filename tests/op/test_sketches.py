"""Key sketches: residuals that bound their error for any magnitudes, and calibrated centres and balances."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LONG, ONE, SKETCH_FAMILIES, Case, cases, examples

from .sketch_properties import check_sketches
from .subject import make_step


@examples(14)
@given(case=cases(families=SKETCH_FAMILIES), calibrated=st.booleans())
@example(case=Case((ONE, LONG), family="spread"), calibrated=False)
@example(case=Case((LONG,), family="tiny"), calibrated=True)
@example(case=Case((LONG,), family="huge"), calibrated=True)
@example(case=Case((LONG,), family="outliers"), calibrated=False)
@example(case=Case((LONG,), family="constant"), calibrated=False)
def test_residuals_bound_the_error(sketched, case, calibrated):
    check_sketches(sketched, case, calibrated)


def test_keys_at_their_centre_have_no_error(sketched):
    """One key for every token: its mean is itself, up to the mean's own rounding, and so residuals vanish beside it."""
    step = make_step(sketched, Case((LONG,), family="constant"))
    residuals = step.summarize().sketch_residuals.float().cpu().transpose(1, 2)
    largest = residuals[step.live()].amax()
    # a key as stored may lie a rounding of its type away from the centre
    unit = 2.0**-12 if sketched.dtype == torch.float32 else 4 * torch.finfo(sketched.dtype).eps
    assert largest <= unit * sketched.head_dim**0.5 * max(k.abs().max() for k in step.keys)
