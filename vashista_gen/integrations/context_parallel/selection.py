"""The pages and tokens of a sequence that lies on several ranks: each scores its own, and all agree on what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NEG_INF = float("-inf")
Gather = Callable[[torch.Tensor], torch.Tensor]  # x -> [ranks, *x.shape]


def select_pages(
    package: Any, scores: torch.Tensor, seq_lens: torch.Tensor, rank: int, ranks: int, gather: Gather
) -> torch.Tensor:
    """int32 [batch, kv heads, P]: the P pages of the whole sequence, logical, ascending, -1 padded; the same on all ranks.

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
    return _packed(numbers, chosen > NEG_INF)[0]


def local_pages(pages: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """int32, the shape of pages: those of a rank among logical pages (-1 for none), as local pages, ascending, -1 padded."""
    return _packed(pages // ranks, (pages >= 0) & (pages % ranks == rank))[0]


def in_whole_sequence(scores: torch.Tensor, pages: torch.Tensor, page_size: int) -> torch.Tensor:
    """float32 [batch, kv heads, group, P * page_size]: scores of the tokens of logical pages, as one process has them.

    scores: [ranks, batch, kv heads, group, P * page_size], of `score_tokens` for each rank's `local_pages` of pages
    int32 [batch, kv heads, P], ascending, -1 padded. -inf where no page is.
    """
    ranks = scores.shape[0]
    owner = torch.where(pages >= 0, pages % ranks, ranks)  # [batch, kv heads, P]
    mine = owner[None] == torch.arange(ranks, device=pages.device).view(-1, 1, 1, 1)
    place = ((mine.cumsum(-1) - 1) * mine).sum(0)  # in its rank's list
    by_page = scores.unflatten(-1, (-1, page_size)).permute(1, 2, 0, 4, 3, 5)
    by_page = by_page.flatten(2, 3)  # [batch, kv heads, ranks * P, group, page_size]
    index = owner.clamp(max=ranks - 1) * pages.shape[-1] + place
    found = by_page.gather(2, index[..., None, None].expand(*index.shape, *by_page.shape[3:]))
    found = found.masked_fill((pages < 0)[..., None, None], NEG_INF)
    return found.transpose(2, 3).flatten(-2).contiguous()


def local_tokens(
    tokens: torch.Tensor, heads: torch.Tensor, counts: torch.Tensor, page_size: int, rank: int, ranks: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(positions on a rank, which heads keep each, counts) of the rank's tokens among listed ones, in the lists' form.

    tokens, heads int32 [batch, kv heads, n], counts int32 [batch, kv heads], as `choose_tokens` gives them.
    """
    pages = tokens // page_size
    mine = (tokens >= 0) & (pages % ranks == rank)
    positions, order = _packed(pages // ranks * page_size + tokens % page_size, mine)
    heads = torch.where(mine, heads, 0).gather(-1, order)
    return positions, heads, mine.sum(-1, dtype=torch.int32)


def _packed(numbers, wanted):
    """(int32 numbers where wanted, ascending, and -1 behind them; where each came from), along the last axis."""
    last = torch.iinfo(torch.int32).max
    found, order = torch.where(wanted, numbers.to(torch.int32), last).sort(dim=-1)
    return torch.where(found == last, -1, found), order


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
