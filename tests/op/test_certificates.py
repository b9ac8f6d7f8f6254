"""Certificates: rigorous ones hold for any magnitudes and say something, and failing rows are computed again."""

import inspect

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import EMPTY, LONG, ONE, SKETCH_FAMILIES, Case, Length, cases, examples

from .certificate_properties import check_bounds, check_certificate, check_failed_rows_are_dense, truth
from .subject import make_step
from .watch import FIELDS, Round, watched_decode

EVEN = (Length(eighths=16), Length(eighths=24), LONG)


@examples(10)
@given(case=cases(families=SKETCH_FAMILIES), listed=st.booleans())
@example(case=Case((EMPTY, ONE, LONG)), listed=False)
@example(case=Case(EVEN, family="normal"), listed=True)
@example(case=Case(EVEN, family="peaked"), listed=False)
@example(case=Case(EVEN, family="huge"), listed=False)
@example(case=Case(EVEN, family="spread"), listed=False)
@example(case=Case(EVEN, family="tiny"), listed=False)
@example(case=Case(EVEN, family="zero_keys"), listed=False)
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


def test_pages_given_for_a_short_row_are_not_all_of_it(certified):
    """A row of no more pages than are routed, of which one is given: the others are omitted, in a wide table too."""
    step = make_step(certified, Case((Length(eighths=4, pages=1), LONG), seed=5))
    pages = torch.full((2, certified.kv_heads, certified.routed_pages), -1, dtype=torch.int32)
    pages[:, :, 0] = 1
    found = watched_decode(step, step.summarize(), selected_pages=pages.to(certified.device)).rounds[0]
    names = dict(zip(FIELDS, found.certificate.double(), strict=True))
    for h in range(certified.kv_heads):
        if certified.audited(step.lengths[0], h):
            heads = step.heads(h)
            assert (names["leakage"][0, heads] > 0).all() and (names["log_omitted"][0, heads] > -1e6).all()
            assert names["support_gap"][0, heads].isfinite().all()


@pytest.mark.parametrize("family", ["normal", "peaked", "huge", "tiny", "zero_keys", "spread", "orthogonal", "common_value"])
def test_the_reference_bounds_in_float32_as_well(certified, monkeypatch, family):
    """What computes on a CPU without a compiler: its rigorous certificates are above the truth too."""
    if certified.certificate != "rigorous" or not certified.exact:
        pytest.skip("of rigorous certificates on a CPU")
    reference = certified.part("reference")
    if certified.retries:
        monkeypatch.setattr(reference, "_failed", lambda certificate, seq_lens: [])
    step = make_step(certified, Case((Length(eighths=12), ONE, Length(eighths=9, tokens=4)), seed=3, family=family))
    tensors = step.q, step.k_cache, step.v_cache, step.block_table, step.seq_lens
    summaries = reference.summarize_pages(step.k_cache, *tensors[3:], v_cache=step.v_cache)
    assert summaries.sketch_residuals.dtype == step.q.dtype == torch.float32
    listed = reference.select_tokens(step.q, step.k_cache, *tensors[3:], summaries)
    out, _, certificate = reference.decode(*tensors, summaries, return_certificate=True)
    chosen, rows = Round(1, listed[0], *listed, None, None), 0
    for b, h, q, keys, values in step.rows:
        if not certified.audited(step.lengths[b], h):
            continue
        rows += 1
        heads = step.heads(h)
        kept = chosen.kept(b, h, certified.group, step.lengths[b])
        exact = truth(step, kept, q, keys, values, out[b, heads].double())
        claimed = {name: x[b, heads].double() for name, x in zip(FIELDS, certificate, strict=True)}
        assert not any(x.isnan().any() for x in claimed.values())
        check_bounds(claimed, exact, f"row {b}, KV head {h}")
    assert rows


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
