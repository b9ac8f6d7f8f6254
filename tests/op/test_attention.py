"""Dense and sparse decoding are softmax attention, within bounds derived in assertions.py."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import EMPTY, LONG, ONE, Case, Length, cases, examples

from .properties import check_decode, check_dense, check_equals_dense
from .subject import make_step


@examples(12)
@given(case=cases())
@example(case=Case((EMPTY, ONE, LONG)))
@example(case=Case((LONG,), family="huge"))
@example(case=Case((ONE, LONG), family="lse_low"))
@example(case=Case((ONE, Length(pages=1), LONG), family="lse_zero"))
def test_dense(subject, case):
    check_dense(subject, case)


@examples(12)
@given(case=cases())
@example(case=Case((EMPTY, ONE, LONG)))
@example(case=Case((LONG,), family="huge"))
@example(case=Case((LONG,), family="near_tie"))
@example(case=Case((ONE, LONG), family="lse_low"))
@example(case=Case((ONE, Length(pages=1), LONG), family="lse_zero"))
def test_decode(subject, case):
    check_decode(subject, case)


@examples(10)
@given(case=cases())
@example(case=Case((EMPTY, ONE, Length(tokens=16))))
@example(case=Case((Length(eighths=8), Length(eighths=8, tokens=-1), Length(eighths=8, tokens=1))))
def test_short_contexts_are_dense(subject, case):
    check_equals_dense(subject, case)


@examples(6)
@given(case=cases(families=("huge",)))
def test_huge_norms_give_finite_output(subject, case):
    step = make_step(subject, case)
    for out, lse in (step.decode(step.summarize()), step.decode_dense()):
        assert out.isfinite().all()
        assert (lse.isfinite() | (step.seq_lens == 0)[:, None]).all()


@pytest.mark.parametrize("name", ["decode", "decode_dense"])
def test_empty_and_single_token(subject, name):
    """No token: 0 and -inf. One token: its value, bit for bit, and its logit; an lse of 0 is no empty result."""
    step = make_step(subject, Case((EMPTY, ONE), family="zero_query"))
    out, lse = step.decode(step.summarize()) if name == "decode" else step.decode_dense()
    assert (out[0] == 0).all() and (lse[0] == float("-inf")).all()
    assert (lse[1] == 0).all()
    values = step.values[1][0].to(subject.dtype).repeat_interleave(subject.group, 0)
    assert torch.equal(out[1].cpu(), values)


@pytest.mark.parametrize("name", ["decode", "decode_dense", "select_pages"])
def test_empty_batch(subject, name):
    step = make_step(subject, Case((ONE,)))
    none = {x: getattr(step, x)[:0] for x in ("q", "block_table", "seq_lens")}
    summaries = step.summarize()
    if name == "select_pages":
        found = subject.package.select_pages(none["q"], summaries, none["block_table"], none["seq_lens"])
        assert found.shape == (0, subject.kv_heads, subject.routed_pages)
    else:
        out, lse = step.decode(summaries, **none) if name == "decode" else step.decode_dense(**none)
        assert out.shape[0] == lse.shape[0] == 0


@examples(4)
@given(case=cases(families=("normal", "constant")), again=st.integers(1, 3))
def test_deterministic(subject, case, again):
    step = make_step(subject, case)
    summaries = step.summarize()
    first = *step.decode(summaries), *step.decode_dense()
    for _ in range(again):
        assert all(map(torch.equal, first, (*step.decode(summaries), *step.decode_dense())))
