"""Token candidates: which tokens a step keeps, with budgets and pinned pages of its own."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import EMPTY, LONG, ONE, Case, Length, cases, examples

from .properties import check_decode
from .subject import make_step
from .watch import watched_decode


@examples(8)
@given(case=cases(), budgets=st.none() | st.integers(0, 99), pins=st.integers(0, 4))
@example(case=Case((EMPTY, ONE, LONG)), budgets=1, pins=2)
@example(case=Case((LONG, LONG), family="duplicates"), budgets=2, pins=1)
@example(case=Case((LONG, LONG), family="constant"), budgets=None, pins=3)
@example(case=Case((LONG,), family="peaked"), budgets=None, pins=0)
@example(case=Case((Length(eighths=7), Length(eighths=9, tokens=1))), budgets=3, pins=0)
def test_choice(listing, case, budgets, pins):
    check_decode(listing, case, budgets, pins)


def test_a_budget_holds_whatever_the_width_of_the_table(listing):
    """A short sequence keeps one token with a budget of 1 (one page where pages are kept), in any table."""
    if listing.retries:
        pytest.skip("a row of one token in many fails its certificate and is attended to in whole")
    length = listing.page_size + 3
    if length <= listing.spec["candidates"].get("dense_below", 0):
        return
    step = make_step(listing, Case((Length(pages=1, tokens=3),), seed=1))
    summaries, budgets = step.summarize(), torch.ones(1, listing.kv_heads, dtype=torch.int32, device=listing.device)
    narrow = step.block_table[:, :2].contiguous()
    wide = torch.cat([narrow, narrow.new_full((1, 4 * listing.routed_pages), 2**30)], 1)
    found = [watched_decode(step, summaries, budgets=budgets, block_table=table) for table in (narrow, wide)]
    for one in found:
        kept = one.rounds[0].kept(0, 0, listing.group, length)
        wanted = listing.page_size if listing.spec["candidates"].get("pages") is not None else 1
        assert (kept.sum(-1) <= wanted).all() and kept.any(-1).all()
    assert torch.equal(found[0].out, found[1].out)


def test_select_tokens_shows_what_decode_chooses(listing):
    """The op's lists are those inside decode; on a CPU the reference's, in float32 as well, are the same."""
    step = make_step(listing, Case((LONG, EMPTY, Length(eighths=11, tokens=2)), seed=4))
    summaries = step.summarize()
    tensors = step.q, step.k_cache, step.block_table, step.seq_lens, summaries
    first = watched_decode(step, summaries).rounds[0]
    shown = listing.package.select_tokens(*tensors)
    for got, inside in zip(shown, (first.tokens, first.heads, first.counts), strict=True):
        assert torch.equal(got.cpu(), inside)
    if listing.exact:
        for got, wanted in zip(shown, listing.package.reference.select_tokens(*tensors), strict=True):
            assert torch.equal(got, wanted)


def test_the_steps_are_decode(listing):
    """score_tokens, choose_tokens and attend_tokens one by one: bit for bit what decode gives; refusals name the tensor."""
    package = listing.package
    if not hasattr(package, "score_tokens"):
        pytest.skip("this package computes rows again, or projects: its decode is more than these steps")
    step = make_step(listing, Case((LONG, EMPTY, Length(eighths=11, tokens=2)), seed=5))
    summaries = step.summarize()
    caches, rows = (step.k_cache, step.v_cache), (step.block_table, step.seq_lens)
    pages = package.select_pages(step.q, summaries, *rows)
    scores = package.score_tokens(step.q, step.k_cache, *rows, summaries, pages)
    chosen = package.choose_tokens(scores, step.seq_lens, pages)
    for got, shown in zip(chosen, package.select_tokens(step.q, step.k_cache, *rows, summaries), strict=True):
        assert torch.equal(got, shown)
    found = package.attend_tokens(step.q, *caches, *rows, *chosen)
    for got, wanted in zip(found, package.decode(step.q, *caches, *rows, summaries), strict=True):
        assert torch.equal(got, wanted)
    if listing.exact:
        reference = package.reference
        expected = reference.score_tokens(step.q, step.k_cache, *rows, summaries, pages)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
        for got, wanted in zip(reference.attend_tokens(step.q, *caches, *rows, *chosen), found, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="counts must be int32"):
        package.attend_tokens(step.q, *caches, *rows, *chosen[:2], chosen[2].long())
    with pytest.raises(ValueError, match="scores must be float32"):
        package.choose_tokens(scores[..., :-1], step.seq_lens, pages)


def test_a_budget_below_what_is_always_kept_keeps_the_newest(listing):
    """Sinks, pinned and recent pages hold more than the budget: the last tokens (or pages) of them, in op and reference."""
    if listing.retries:
        pytest.skip("rows of so few tokens fail their certificate and are attended to in whole")
    step = make_step(listing, Case((LONG,), seed=2))
    size, length = listing.page_size, step.lengths[0]
    pages = -(-length // size)
    budget, pins = size + 2, torch.tensor([[pages // 2, -1]], dtype=torch.int32, device=listing.device)
    given = {"budgets": torch.full((1, listing.kv_heads), budget, dtype=torch.int32, device=listing.device)}
    given |= {"pinned_pages": pins}
    summaries = step.summarize()
    tensors = step.q, step.k_cache, step.block_table, step.seq_lens, summaries
    routing, by_page = listing.spec["routing"], listing.spec["candidates"].get("pages") is not None
    always = torch.zeros(pages, dtype=torch.bool)
    always[: routing["sink_pages"]] = always[pages - routing["recent_pages"] :] = always[pages // 2] = True
    routed = listing.package.select_pages(step.q, summaries, *tensors[2:4], pinned_pages=pins).cpu()
    found = [listing.package.select_tokens(*tensors, **given)]
    if listing.exact:
        found.append(listing.package.reference.select_tokens(*tensors, **given))
    for h in range(listing.kv_heads):
        forced = torch.tensor([int(p) for p in routed[0, h] if p >= 0 and always[p]])
        forced = (forced[:, None] * size + torch.arange(size)).flatten()
        forced = forced[forced < length]
        wanted = forced[forced // size == pages - 1] if by_page else forced[-budget:]
        assert len(wanted) < len(forced)
        for tokens, heads, counts in found:
            assert tokens[0, h, : int(counts[0, h])].tolist() == wanted.tolist()
            assert (heads[0, h, : len(wanted)] == 2**listing.group - 1).all()
