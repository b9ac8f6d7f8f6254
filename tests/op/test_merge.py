"""merge_states: o = sum_r exp(lse_r - lse) o_r over disjoint token sets, whatever the parts."""

import pytest
import torch
from assertions import assert_within, softmax_sum, weight_exponent_error
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import EMPTY, LONG, ONE, Case, cases, examples

from .properties import arithmetic_of, check_merge

LEVELS = [float("-inf"), 0.0, -0.0, -1e4, 1e4, 1e30, 1.0, 1 - 2**-20, -90.0]


@examples(8)
@given(case=cases(), parts=st.integers(1, 5))
@example(case=Case((EMPTY, ONE, LONG)), parts=3)
@example(case=Case((ONE,), family="zero_query"), parts=4)
@example(case=Case((LONG,), family="lse_low"), parts=2)
def test_parts_merge_to_the_whole(subject, case, parts):
    check_merge(subject, case, parts)


@examples(12)
@given(
    lse=st.lists(st.sampled_from(LEVELS), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@example(lse=[float("-inf")], seed=0)
@example(lse=[float("-inf"), float("-inf")], seed=0)
@example(lse=[0.0, float("-inf")], seed=0)
@example(lse=[1e30, 1e30], seed=0)
def test_any_states_merge(subject, lse, seed):
    """An empty part (lse -inf, NaN in out) does not count; all empty gives 0 and -inf; an lse of 0 is not empty."""
    draw = torch.Generator().manual_seed(seed)
    batch, heads = 2, subject.kv_heads * subject.group
    out = torch.randn(len(lse), batch, heads, subject.head_dim, generator=draw).to(subject.dtype)
    empty = torch.tensor(lse) == float("-inf")
    out[empty] = float("nan")
    state = torch.tensor(lse)[:, None, None].expand(-1, batch, heads).contiguous()
    merged, merged_lse = subject.package.merge_states(out.to(subject.device), state.to(subject.device))
    assert merged.shape == out.shape[1:] and merged.dtype == subject.dtype
    if empty.all():
        assert (merged == 0).all() and (merged_lse == float("-inf")).all()
        return
    parts = out.double().nan_to_num(0.0).flatten(1, 2).transpose(0, 1)
    logits = state.double().flatten(1).T
    dl = weight_exponent_error(logits, torch.zeros_like(logits), 0)
    exact = softmax_sum(logits, dl, parts, 0, arithmetic_of(subject))
    assert_within(merged.flatten(0, 1), exact.out, exact.out_error, "merged out")
    assert_within(merged_lse.flatten(), exact.lse, exact.lse_error, "merged lse")


@pytest.mark.parametrize("parts", [1, 3])
def test_a_single_state_stays_as_it_is(subject, parts):
    """Merging one part with empty ones returns it, bit for bit."""
    out = torch.randn(parts, 1, subject.kv_heads * subject.group, subject.head_dim).to(subject.dtype).to(subject.device)
    lse = torch.full(out.shape[:3], float("-inf"), device=subject.device)
    lse[-1] = torch.randn(lse.shape[1:], device=subject.device)
    merged, merged_lse = subject.package.merge_states(out, lse)
    assert torch.equal(merged, out[-1]) and torch.equal(merged_lse, lse[-1])
