"""Pages are ranked by the reference's scores of their summaries, ties go to the earlier page, forced pages are kept."""

import pytest
import torch
from hypothesis import example, given
from strategies import LONG, Case, Length, cases, examples

from .properties import check_page_lists, check_selection, page_weights, wide
from .subject import make_step


@examples(20)
@given(case=cases())
@example(case=Case((LONG, Length(eighths=8), Length(eighths=8, tokens=1))))
@example(case=Case((LONG,), family="huge"))
def test_selection(subject, case):
    check_selection(subject, case)


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


@examples(8)
@given(case=cases(families=("normal", "peaked", "outliers", "duplicates")))
def test_page_lists(subject, case):
    check_page_lists(subject, case)


@examples(6)
@given(case=cases(families=("normal", "peaked", "one_hot", "outliers")))
def test_scores_mean_what_the_spec_says(subject, case):
    """Against the tokens themselves, unquantised: a mean's score is the mean logit; a box of weight 1 bounds every logit;
    log-sum-exp of group means is at most that of the tokens (Jensen)."""
    routing, model = subject.spec["routing"], subject.spec["model"]
    if subject.device.type != "cpu" or model["logits_soft_cap"] is not None:
        return
    step = make_step(subject, case)
    summaries = wide(step.summarize())
    reference = subject.package.reference
    scale = model["sm_scale"] / subject.spec["attention"]["epsilon"]
    for b, h, q, keys, _ in step.rows:
        pages = torch.tensor(step.pages()[b])
        if not len(pages):
            continue
        score = reference.page_scores(step.q.double(), summaries, step.block_table, step.seq_lens, b)[h]
        logits = scale * q @ keys.T
        of_page = logits.split(subject.page_size, dim=-1)
        # what rounding a summary to integer codes may move a score by, a little over half a step in every channel
        step_size = float(0)
        if routing["summary_bits"] != 16:
            scales = summaries.scales[pages][:, h].view(len(pages), -1)
            step_size = scale * (q.abs()[:, None] * scales[None]).sum(-1) * (1.01 if scales.shape[1] > 1 else 1.01)
            if scales.shape[1] == 1:
                step_size = scale * q.abs().sum(-1, keepdim=True) * scales[:, 0] * 1.01
        slack = step_size / 2 + 1e-5 * (1 + scale * q.abs().sum(-1, keepdim=True) * keys.abs().max())
        if routing["summary"] == "mean":
            mean = torch.stack([x.mean(-1) for x in of_page], -1)
            assert ((score - mean).abs() <= slack).all()
        elif routing["summary"] == "box" and routing["box_weight"] == 1:
            most = torch.stack([x.amax(-1) for x in of_page], -1)
            assert (score >= most - 1e-5 * (1 + most.abs())).all()
        elif routing["summary"] == "subpage_mean":
            total = torch.stack([torch.logsumexp(x, -1) for x in of_page], -1)
            assert (score <= total + slack).all()
        weight, _ = page_weights(step, step.summarize(), b, h, q)
        if routing["group_reduce"] == "max":
            assert torch.equal(weight, score.amax(0))
        else:
            assert abs(float(weight.sum()) - subject.group) < 1e-9
