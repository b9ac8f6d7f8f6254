"""Which tokens a step keeps: the list's form, what is always kept, and ranks by logits or sketches up to rounding."""

from __future__ import annotations

import torch
from assertions import assert_ranked, logit_error, logits_of, weight_error, weight_exponent_error

from .sketch_properties import sketch_logits
from .subject import Step, Subject, arithmetic_of
from .watch import Round

VANISHED = 2.0**-120  # below this a share of a group's weight may come out as 0


def candidates(subject: Subject, pages: torch.Tensor, length: int) -> torch.Tensor:
    """Positions of the tokens on a list of logical pages, ascending."""
    pages = pages.cpu().long()
    tokens = (pages[pages >= 0, None] * subject.page_size + torch.arange(subject.page_size)).flatten()
    return tokens[tokens < length]


def token_ranks(step: Step, summaries, b: int, h: int, q, keys, tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """(score, bound on the kernel's error), [1 or group, tokens]: what tokens are ranked by."""
    subject, arithmetic = step.subject, arithmetic_of(step.subject)
    if subject.sketched:
        logits, error, _ = (x[:, tokens] for x in sketch_logits(step, summaries, b, h, q))
    else:
        logits, magnitudes = logits_of(subject.spec, q, keys[tokens])
        error = logit_error(subject.spec, logits, magnitudes, arithmetic)
    if subject.spec["candidates"]["share"] == "head":
        return logits, error
    p, p_error, _ = weight_error(logits, weight_exponent_error(logits, error, 0))
    # a sum of n weights, its reciprocal, a product, then the sum over the group
    score = p.sum(0, keepdim=True)
    error = p_error.sum(0, keepdim=True) + subject.group * VANISHED
    return score, error + arithmetic.gamma(len(tokens) + subject.group + 8) * score


def check_list(subject: Subject, found: Round, b: int, h: int, length: int, where: str) -> None:
    """Positions ascend, each once, all of them in the round's pages, -1 padded; only listed tokens have heads."""
    count, tokens, heads = int(found.counts[b, h]), found.tokens[b, h], found.heads[b, h]
    assert 0 <= count <= len(tokens), f"{where}: {count} tokens listed of {len(tokens)}"
    listed = tokens[:count].long()
    assert (listed[1:] > listed[:-1]).all(), f"{where}: tokens do not ascend"
    assert torch.isin(listed, candidates(subject, found.pages[b, h], length)).all(), f"{where}: not on a routed page"
    assert (tokens[count:] == -1).all() and (heads[count:] == 0).all(), f"{where}: not padded"
    every = 2**subject.group - 1
    kept = heads[:count]
    if subject.spec["candidates"]["share"] == "group":
        assert (kept == every).all(), f"{where}: a token is kept by a part of the group"
    assert ((kept > 0) & (kept <= every)).all(), f"{where}: a token of no head"


def check_choice(step: Step, summaries, found: Round, b: int, h: int, q, keys, budgets=None, pinned=()) -> bool:
    """The right tokens are kept, up to rounding. Whether there was no near-tie."""
    subject, length, where = step.subject, step.lengths[b], f"row {b}, KV head {h}, growth {found.growth}"
    rule, size = subject.spec["candidates"], subject.page_size
    check_list(subject, found, b, h, length, where)
    tokens = candidates(subject, found.pages[b, h], length)
    kept = found.kept(b, h, subject.group, length)[:, tokens]
    if length <= rule.get("dense_below", 0) or not len(tokens):
        assert kept.all(), f"{where}: a token of a short context is left out"
        return True
    routed = subject.routed_pages * size
    most = (subject.tokens_kept or routed) * found.growth
    if budgets is not None:
        most = max(min(int(budgets[b, h]) * found.growth, most), 1)
    pages = tokens // size
    routing, last = subject.spec["routing"], -(-length // size)
    always = (pages < routing["sink_pages"]) | (pages >= last - routing["recent_pages"])
    always |= torch.isin(pages, torch.tensor([p for p in pinned if p >= 0], dtype=torch.long))
    score, error = token_ranks(step, summaries, b, h, q, keys, tokens)
    if rule.get("pages") is not None:
        return _check_pages(kept[0], score[0], error[0], pages, always, max(most // size, 1), where)
    if rule.get("mass") is not None and budgets is None:
        return _check_mass(subject, kept[0], score[0], error[0], always, most, where)
    return all([_check_largest(kept[g], score[g], error[g], always, most, where) for g in range(len(score))])


def _check_largest(kept, score, error, always, most: int, where: str) -> bool:
    """`most` tokens: those always kept, the newest first, then the largest."""
    assert kept.sum() == min(most, len(kept)), f"{where}: {int(kept.sum())} tokens kept, not {most} of {len(kept)}"
    forced = always.nonzero()[-most:, 0]
    assert kept[forced].all(), f"{where}: a token that is always kept is left out"
    if len(forced) == most or most >= len(kept):
        return True
    kept, score, error = kept[~always], score[~always], error[~always]
    assert_ranked(kept, score, error, f"tokens of {where}")
    return bool((score - error)[kept].min() > (score + error)[~kept].max()) if not kept.all() else True


def _check_pages(kept, score, error, pages, always, most: int, where: str) -> bool:
    """Whole pages: those always kept, then the ones with the largest share of the mass."""
    names, place = torch.unique(pages, return_inverse=True)
    of_page = lambda x: torch.zeros(len(names), dtype=torch.float64).index_add(0, place, x.double())
    share, sizes = of_page(kept.double()), of_page(torch.ones(len(pages)))
    assert ((share == 0) | (share == sizes)).all(), f"{where}: a part of a page is kept"
    mass = of_page(score)
    return _check_largest(share > 0, mass, of_page(error) + 2.0**-20 * mass, of_page(always) > 0, most, where)


def _check_mass(subject: Subject, kept, score, error, always, most: int, where: str) -> bool:
    """The fewest of the largest tokens that reach the share, clamped; all that are always kept, where there is room.

    Each weight is rounded down to 2^-26 of the group's mass, the share of their sum once more in float32.
    """
    rule, count, whole = subject.spec["candidates"], int(kept.sum()), score.sum()
    least, most = min(subject.least_tokens, len(kept)), min(most, len(kept))
    assert least <= count <= most, f"{where}: {count} tokens kept, not {least} to {most}"
    clear = _check_largest(kept, score, error, always, count, where)
    slack = error.sum() + subject.group * (len(kept) + 8) * 2.0**-26
    reached, wanted = score[kept].sum(), rule["mass"] * whole
    if count < most:
        assert reached >= wanted - slack, f"{where}: {count} tokens hold {reached:.6f}, wanted {wanted:.6f}"
        clear &= bool(reached > wanted + slack)
    free = kept & ~always
    if count > max(least, int(always.sum())):
        without = reached - score[free].min()
        assert without < wanted + slack, f"{where}: one of {count} tokens is not needed for {wanted:.6f}"
        clear &= bool(without < wanted - slack)
    return clear
