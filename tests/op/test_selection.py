"""Pages are ranked by the reference's scores of their summaries, ties go to the earlier page, forced pages are kept."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import LONG, Case, Length, cases, examples

from .properties import check_page_lists, check_selection, wide
from .sketch_properties import sketch_logits
from .subject import make_step


@examples(20)
@given(case=cases())
@example(case=Case((LONG, Length(eighths=8), Length(eighths=8, tokens=1))))
@example(case=Case((LONG,), family="huge"))
def test_selection(subject, case):
    check_selection(subject, case)


WAYS = [None, ("route_rows", 1), *(("route_pages", blocks) for blocks in (*range(1, 9), 12, 16))]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)) if way else "apart")
def test_every_way_to_route(two_levels, monkeypatch, way):
    """In one launch, with any number of blocks a row, or in four."""
    if two_levels.exact or not hasattr(two_levels.part("op"), "_router"):
        pytest.skip("of kernels whose blocks form clusters")
    monkeypatch.setattr(two_levels.part("op"), "_router", lambda lib, rows, supers: way)
    check_selection(two_levels, Case((LONG, Length(eighths=8), Length(eighths=8, tokens=1)), seed=7))
    check_selection(two_levels, Case((LONG, LONG), seed=3), 6)


@pytest.mark.parametrize("way", [None, ("route_pages", 1), ("route_pages", 5)], ids=lambda way: "-".join(map(str, way)) if way else "apart")
@pytest.mark.parametrize("family", ["normal", "constant"])
def test_many_super_pages(two_levels, monkeypatch, way, family):
    """More than two for each thread of a block that routes: a few are told from the many first, unless all are alike."""
    if two_levels.exact or not hasattr(two_levels.part("op"), "_router"):
        pytest.skip("of kernels whose blocks form clusters")
    monkeypatch.setattr(two_levels.part("op"), "_router", lambda lib, rows, supers: way)
    pages = 1100 * two_levels.spec["routing"]["super_pages"]
    check_selection(two_levels, Case((Length(pages=pages, tokens=5),), seed=11, family=family))


@examples(8)
@given(case=cases(), pins=st.integers(1, 6))
@example(case=Case((LONG, LONG)), pins=40)
def test_pinned_pages(subject, case, pins):
    """They are kept behind sinks and recent pages, the earlier first, as far as they fit."""
    check_selection(subject, case, pins)


@pytest.mark.parametrize("family", ["constant", "zero_query"])
def test_ties_go_to_the_earlier_page(subject, family):
    """Whole pages of one score: the first ones are taken, beside sinks and recent pages."""
    step = make_step(subject, Case((Length(eighths=16), Length(eighths=24)), family=family))
    routing = subject.spec["routing"]
    for row, length in zip(step.select_pages(step.summarize()).tolist(), step.lengths, strict=True):
        n = length // subject.page_size
        if n > subject.routed_pages and length % subject.page_size == 0:
            recent = routing["recent_pages"]
            wanted = [*range(subject.routed_pages - recent), *range(n - recent, n)]
            assert row == [wanted] * subject.kv_heads


@pytest.mark.parametrize("tokens", [-1, 1])  # the last page is not whole, or the super-page lacks pages
@pytest.mark.parametrize("junk", [3e3, -3e3])
def test_super_pages_that_are_not_whole_have_no_scores(two_levels, tokens, junk):
    """Whatever lies where their summaries will, in the way of the queries or against it: the choice is the same."""
    routing = two_levels.spec["routing"]
    length = Length(pages=(routing["beam"] + 4) * routing["super_pages"], tokens=tokens)
    step = make_step(two_levels, Case((length, length)))
    summaries = step.summarize()
    chosen = step.select_pages(summaries)
    broken = ~step.last_of_supers().to(two_levels.device)
    for name, x in zip(type(summaries)._fields, summaries, strict=True):
        if name in ("super_values", "super_scales"):
            assert x[broken].isnan().all()
            x[broken] = junk
    assert torch.equal(step.select_pages(summaries), chosen)


@examples(8)
@given(case=cases(families=("normal", "peaked", "outliers", "duplicates")))
def test_page_lists(subject, case):
    check_page_lists(subject, case)


@examples(6)
@given(case=cases(families=("normal", "peaked", "one_hot", "outliers")))
def test_scores_mean_what_the_spec_says(subject, case):
    """Against the tokens: a mean's score is the mean logit, a box of weight 1 bounds every logit, and log-sum-exp of
    group means is at most that of the tokens (Jensen); up to half a code step in every channel of integer summaries."""
    routing, model = subject.spec["routing"], subject.spec["model"]
    if model["logits_soft_cap"] is not None:
        return
    step = make_step(subject, case)
    summaries, reference = wide(step.summarize()), subject.package.reference
    scale = model["sm_scale"] / subject.spec["attention"]["epsilon"]
    unit, table, lens = torch.finfo(subject.dtype).eps, step.block_table.cpu(), step.seq_lens.cpu()
    for b, h, q, keys, _ in step.rows:
        pages = torch.tensor(step.pages()[b], dtype=torch.long)
        if not len(pages):
            continue
        score = reference.page_scores(step.q.cpu().double(), summaries, table, lens, b)[h]
        of_page = (scale * q @ keys.T).split(subject.page_size, dim=-1)
        if routing["summary"] == "sketch":
            _, error, reach = sketch_logits(step, step.summarize(), b, h, q)
            worst = (error + reach).amax(-1, keepdim=True) * (1 + 2.0**-20) + 2.0**-40
            assert ((score - torch.stack([torch.logsumexp(x, -1) for x in of_page], -1)).abs() <= worst).all()
            continue
        reach = scale * q.abs().sum(-1, keepdim=True)  # what a change of 1 in every channel is worth
        slack = 8 * unit * (1 + reach * keys.abs().max())
        if routing["summary_bits"] != 16:
            scales = summaries.scales[pages][:, h].view(len(pages), -1)
            steps = scales.expand(-1, subject.head_dim)
            if "spread" in type(summaries)._fields:
                steps = steps * summaries.spread[h]
            slack = slack + 0.51 * scale * (q.abs() @ steps.T)
        if routing["summary"] == "mean":
            assert ((score - torch.stack([x.mean(-1) for x in of_page], -1)).abs() <= slack).all()
        elif routing["summary"] == "box" and routing["box_weight"] == 1:
            most = torch.stack([x.amax(-1) for x in of_page], -1)
            assert (score >= most - 8 * unit * (1 + reach * keys.abs().max())).all()
        elif routing["summary"] == "subpage_mean":
            assert (score <= torch.stack([torch.logsumexp(x, -1) for x in of_page], -1) + slack).all()
