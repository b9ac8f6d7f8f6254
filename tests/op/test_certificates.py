"""Certificates: rigorous ones hold for any magnitudes and say something, and failing rows are computed again."""

import inspect

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import EMPTY, LONG, ONE, SKETCH_FAMILIES, Case, Length, cases, examples

from .certificate_properties import check_certificate, check_failed_rows_are_dense
from .subject import make_step
from .watch import watched_decode

EVEN = (Length(eighths=16), Length(eighths=24), LONG)


@examples(10)
@given(case=cases(families=SKETCH_FAMILIES), listed=st.booleans())
@example(case=Case((EMPTY, ONE, LONG)), listed=False)
@example(case=Case(EVEN, family="normal"), listed=True)
@example(case=Case(EVEN, family="peaked"), listed=False)
@example(case=Case(EVEN, family="huge"), listed=False)
@example(case=Case(EVEN, family="spread"), listed=False)
@example(case=Case(EVEN, family="tiny"), listed=False)
@example(case=Case(EVEN, family="outliers"), listed=False)
@example(case=Case((ONE, Length(eighths=3), LONG), family="common_value"), listed=False)
def test_certificates(certified, case, listed):
    check_certificate(certified, case, listed)


@pytest.mark.parametrize("origin", [True, False], ids=["origin", "mean"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_rounding_of_products_that_cancel(certified, seed, origin):
    """Terms of <q, k> up to 1e6 that add up to about 0: float32 is off by far more than the sketches are."""
    lengths = (Length(eighths=24), Length(eighths=16), Length(eighths=3), Length(pages=1))
    check_certificate(certified, Case(lengths, seed, "orthogonal"), origin=origin)
    check_certificate(certified, Case(lengths[2:], 3 * seed, "orthogonal"), origin=origin)


def test_every_row_that_fails_is_dense(retrying):
    """Many keys of one kind and a flat query: nothing less than the whole sequence can be certified."""
    lengths = tuple(Length(eighths=8 * n) for n in (5, 6, 2))
    assert check_failed_rows_are_dense(retrying, Case(lengths, seed=1, family="zero_query"))


def test_a_peaked_row_passes(retrying):
    """One token with all of the weight: its certificate holds at once, and nothing is computed again."""
    step = make_step(retrying, Case(EVEN[:2], family="one_key"))
    found = watched_decode(step, step.summarize())
    first = found.rounds[0]
    audited = torch.tensor([[retrying.audited(n, h) for h in range(retrying.kv_heads)] for n in step.lengths])
    assert audited.any() and not first.failed[audited].any()


def test_words_say_what_it_is(certified):
    """The certificate's documentation names its kind: proof, measured margin or estimate."""
    word = {"rigorous": "RIGOROUS", "calibrated": "CALIBRATED", "estimate": "ESTIMATE"}[certified.certificate]
    assert word in certified.package.Certificate.__doc__ and word in certified.package.decode.__doc__


def test_nothing_is_read_back(certified):
    """The op's text has no call that would wait for the device."""
    text = inspect.getsource(certified.part("op"))
    calls = (".item(", ".tolist(", ".cpu(", ".numpy(", "synchronize", ".any(", ".all(", ".nonzero(")
    assert not [name for name in calls if name in text]
