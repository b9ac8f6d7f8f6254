"""The P pages of a sequence that lies on several ranks: each scores its own, and all agree on one threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NEG_INF = float("-inf")
Gather = Callable[[torch.Tensor], torch.Tensor]  # x -> [ranks, *x.shape]


def select_local_pages(
    package: Any, scores: torch.Tensor, seq_lens: torch.Tensor, rank: int, ranks: int, gather: Gather
) -> torch.Tensor:
    """int32 [batch, kv heads, P]: this rank's share of the global top P, as local pages, -1 padded.

    scores float32 [batch, kv heads, group, local pages], of `package.score_pages` on this rank's share; seq_lens
    int32 [batch], tokens on all ranks. A page's weight is that of `package.select_pages`: sum_g softmax_p(score), its
    denominator over the pages of all ranks, or max_g score; sinks and recent pages of the whole sequence come first,
    and of equal weights the earlier page. Two rounds: the denominators [batch, kv heads, group] (one round less for
    max or a single query head), then weights and page numbers of each rank's P best.
    """
    routing, page_size = package.SPEC["routing"], package.SPEC["cache"]["page_size"]
    pages = torch.arange(scores.shape[-1], device=scores.device) * ranks + rank  # logical numbers, ascending
    count = ((seq_lens + page_size - 1) // page_size)[:, None, None]
    weight = _weight(scores, routing["group_reduce"], gather)
    always = (pages < routing["sink_pages"]) | (pages >= count - routing["recent_pages"])
    weight = weight.masked_fill(always, float("inf")).masked_fill(pages >= count, NEG_INF)
    best, found = _largest(weight, pages.expand_as(weight), routing["pages"])
    everyone = gather(torch.stack([best.double(), found.double()]))  # [ranks, 2, batch, kv heads, P], exact in float64
    weights, numbers = everyone.permute(1, 2, 3, 0, 4).flatten(-2)
    # ties go to the earlier page: in order of the page numbers first
    order = numbers.argsort(dim=-1)
    chosen, numbers = _largest(weights.gather(-1, order), numbers.gather(-1, order), routing["pages"])
    mine = (chosen > NEG_INF) & (numbers % ranks == rank)
    return torch.where(mine, numbers // ranks, -1).to(torch.int32)


def _weight(scores, reduce, gather):
    """[batch, kv heads, pages]: how the query heads of a KV head agree, over the pages of all ranks."""
    if reduce == "max" or scores.shape[2] == 1:
        return scores.amax(2)  # with a single head the softmax orders the pages as the scores do
    total = torch.logsumexp(gather(torch.logsumexp(scores.double(), dim=-1)), dim=0)
    return torch.exp(scores.double() - total[..., None]).sum(2).float()


def _largest(weight, pages, count):
    """The `count` largest weights along the last axis and their pages, equal ones as they come; padded with -inf."""
    short = count - weight.shape[-1]
    if short > 0:
        weight = torch.nn.functional.pad(weight, (0, short), value=NEG_INF)
        pages = torch.nn.functional.pad(pages, (0, short))
    weight, order = weight.sort(dim=-1, descending=True, stable=True)
    return weight[..., :count], pages.gather(-1, order)[..., :count]
