"""Key sketches: residuals that bound their error for any magnitudes, and calibrated centres and balances."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LONG, ONE, SKETCH_FAMILIES, Case, cases, examples

from .sketch_properties import check_sketches


@examples(14)
@given(case=cases(families=SKETCH_FAMILIES), calibrated=st.booleans())
@example(case=Case((ONE, LONG), family="spread"), calibrated=False)
@example(case=Case((LONG,), family="tiny"), calibrated=True)
@example(case=Case((LONG,), family="huge"), calibrated=True)
@example(case=Case((LONG,), family="outliers"), calibrated=False)
@example(case=Case((LONG,), family="constant"), calibrated=False)
def test_residuals_bound_the_error(sketched, case, calibrated):
    check_sketches(sketched, case, calibrated)


@pytest.mark.parametrize("family", ["normal", "outliers"])
def test_exact_keys_have_no_error_but_rounding(sketched, family):
    """Keys that are their own centre: y = 0, so codes say nothing and residuals are 0 but for rho."""
    from .subject import make_step

    step = make_step(sketched, Case((LONG,), family="constant"))
    summaries = step.summarize()
    pages = step.pages()[0]
    largest = summaries.sketch_residuals[pages].float().nan_to_num(0.0).amax()
    assert largest <= 2.0**-6 * max(k.abs().max() for k in step.keys)
