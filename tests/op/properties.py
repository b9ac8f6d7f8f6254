"""What must be true of a package's decode step, as functions of (subject, case): the same on every device and spec."""

from __future__ import annotations

import torch
from assertions import (
    Arithmetic,
    assert_ranked,
    assert_within,
    attention,
    logit_error,
    logits_of,
    page_score_error,
    softmax_sum,
    weight_error,
    weight_exponent_error,
)
from strategies import Case

from .subject import NO_PAGE, Step, Subject, make_step

VANISHED = 2.0**-120  # below this a share of a group's weight may come out as 0


def arithmetic_of(subject: Subject) -> Arithmetic:
    """The roundings of a subject's kernels."""
    return Arithmetic.of(subject.device, subject.dtype)


def wide(summaries):
    """Summaries with their floating-point parts in float64, on the CPU."""
    parts = (x.cpu() for x in summaries)
    return type(summaries)(*(x.double() if x.is_floating_point() else x for x in parts))


def check_dense(subject: Subject, case: Case) -> None:
    """decode_dense = softmax over every token, and equals the reference, within the derived bound."""
    step = make_step(subject, case)
    out, lse = step.decode_dense()
    ref_out, ref_lse = subject.package.reference.decode_dense(
        step.q.cpu().double(), step.k_cache.cpu().double(), step.v_cache.cpu().double(),
        step.block_table.cpu(), step.seq_lens.cpu(),
    )  # fmt: skip
    for b, h, q, keys, values in step.rows:
        exact = attention(subject.spec, q, keys, values, arithmetic_of(subject))
        heads = step.heads(h)
        assert_within(out[b, heads], exact.out, exact.out_error, f"out of row {b}, KV head {h}")
        assert_within(lse[b, heads], exact.lse, exact.lse_error, f"lse of row {b}, KV head {h}")
        assert_within(ref_out[b, heads], exact.out, exact.out_error, f"reference's out of row {b}, KV head {h}")
        assert_within(ref_lse[b, heads], exact.lse, exact.lse_error, f"reference's lse of row {b}, KV head {h}")


def check_decode(subject: Subject, case: Case) -> None:
    """decode = softmax over the tokens it keeps of the pages it selects; it keeps the right ones, each counted once."""
    step = make_step(subject, case)
    summaries = step.summarize()
    selected = step.select_pages(summaries)
    out, lse = step.decode(summaries)
    listed_out, listed_lse = step.decode(None, selected_pages=selected)
    weights = token_weights(step, selected)
    ref_out, ref_lse = subject.package.reference.decode(
        step.q.cpu().double(), step.k_cache.cpu().double(), step.v_cache.cpu().double(),
        step.block_table.cpu(), step.seq_lens.cpu(), None, selected_pages=selected.cpu(),
    )  # fmt: skip
    arithmetic = arithmetic_of(subject)
    for b, h, q, keys, values in step.rows:
        tokens = candidates(subject, selected[b, h], step.lengths[b])
        where, heads = f"row {b}, KV head {h}", step.heads(h)
        kept, clear = check_kept(subject, q, keys[tokens], weights[b][h] > 0, step.lengths[b], where)
        exact = attention(subject.spec, q, keys[tokens], values[tokens], arithmetic, kept)
        assert_within(out[b, heads], exact.out, exact.out_error, f"out of {where}")
        assert_within(lse[b, heads], exact.lse, exact.lse_error, f"lse of {where}")
        assert_within(listed_out[b, heads], exact.out, exact.out_error, f"out for given pages of {where}")
        assert_within(listed_lse[b, heads], exact.lse, exact.lse_error, f"lse for given pages of {where}")
        assert_within(weights[b][h], exact.weights, exact.weights_error, f"weights of {where}")
        if clear:
            assert_within(ref_out[b, heads], exact.out, exact.out_error, f"reference's out of {where}")
            assert_within(ref_lse[b, heads], exact.lse, exact.lse_error, f"reference's lse of {where}")


def candidates(subject: Subject, pages: torch.Tensor, length: int) -> torch.Tensor:
    """Positions of the tokens on a list of logical pages, ascending."""
    pages = pages.cpu().long()
    tokens = (pages[pages >= 0, None] * subject.page_size + torch.arange(subject.page_size)).flatten()
    return tokens[tokens < length]


def token_weights(step: Step, selected: torch.Tensor) -> list[list[torch.Tensor]]:
    """[b][h] -> the weight [group, tokens] of each candidate token, read off outputs: its value is a unit vector.

    In one more call the values are 1 for all other tokens, and the output must be 0.
    """
    subject, d = step.subject, step.subject.head_dim
    of_row = lambda b, n: [candidates(subject, selected[b, h], n) for h in range(subject.kv_heads)]
    tokens = [of_row(b, n) for b, n in enumerate(step.lengths)]
    found = [[torch.zeros(subject.group, len(t), dtype=torch.float64) for t in row] for row in tokens]
    zero = step.v_cache * 0  # NaN stays NaN
    heads = [(b, h) for b in range(len(tokens)) for h in step.compared]
    for first in range(0, max((len(tokens[b][h]) for b, h in heads), default=0), d):
        v_cache = zero.clone()
        for b, h in heads:
            part = tokens[b][h][first : first + d]
            set_element(step, v_cache, b, h, part, torch.arange(len(part)), 1.0)
        out = step.decode(None, selected_pages=selected, v_cache=v_cache)[0].cpu().double()
        for b, h in heads:
            part = found[b][h][:, first : first + d]
            part.copy_(out[b, step.heads(h), : part.shape[1]])
            assert (out[b, step.heads(h), part.shape[1] :] == 0).all(), "a channel no value is in"
    v_cache = zero + 1
    for b, row in enumerate(tokens):
        for h, t in enumerate(row):
            set_element(step, v_cache, b, h, t, slice(None), 0.0)
    out = step.decode(None, selected_pages=selected, v_cache=v_cache)[0]
    assert (out == 0).all(), "a token outside the selected pages is counted"
    return found


def set_element(step: Step, cache: torch.Tensor, b: int, h: int, tokens: torch.Tensor, channels, value: float) -> None:
    """cache[token i of sequence b, head h, channels[i]] = value."""
    size, place = step.subject.page_size, lambda i: i.to(cache.device) if isinstance(i, torch.Tensor) else i
    pages, offsets = step.block_table[b].cpu()[tokens // size].long(), tokens % size
    by_token = step.subject.spec["cache"]["layout"] == "NHD"
    cache[tuple(map(place, (pages, offsets, h, channels) if by_token else (pages, h, offsets, channels)))] = value


def check_kept(subject: Subject, q, keys, seen, length: int, where: str) -> tuple[torch.Tensor, bool]:
    """K_c tokens are kept and none lighter than one left out, up to rounding: (kept [group, tokens], no near-tie).

    A token far below the largest logit has weight 0 whether it is kept or not: of those the heaviest are taken as kept.
    """
    arithmetic, n, most = arithmetic_of(subject), len(keys), subject.tokens_kept
    if not n:
        return seen, True
    logits, magnitudes = logits_of(subject.spec, q, keys)
    error = logit_error(subject.spec, logits, magnitudes, arithmetic)
    visible = logits - error > logits.amax(-1, keepdim=True) - arithmetic.floor
    if most is None or length <= max(most, subject.spec["candidates"]["dense_below"]) or n <= most:
        assert (seen | ~visible).all(), f"{where}: a token is missing"
        return torch.ones_like(seen), True
    if subject.spec["candidates"]["share"] == "group":
        assert (seen | ~(visible & seen.any(0))).all(), f"{where}: a token is kept by a part of the group"
        p, p_error, _ = weight_error(logits, weight_exponent_error(logits, error, 0))
        # a sum of n weights, its reciprocal, a product, then the sum over the group
        score = p.sum(0, keepdim=True)
        error = p_error.sum(0, keepdim=True) + subject.group * VANISHED
        error = error + arithmetic.gamma(n + subject.group + 8) * score
        seen, visible = seen.any(0, keepdim=True), visible.any(0, keepdim=True)
    else:
        score = logits
    kept, clear = seen.clone(), True
    for g in range(len(seen)):
        hidden = ~visible[g] & ~seen[g]
        order = torch.sort(score[g].masked_fill(~hidden, float("-inf")), descending=True, stable=True).indices
        kept[g, order[: max(0, min(most - int(seen[g].sum()), int(hidden.sum())))]] = True
        assert kept[g].sum() == most, f"{where}: {int(kept[g].sum())} tokens kept, not {most}"
        assert_ranked(kept[g], score[g], error[g], f"tokens of {where}")
        clear &= bool((score - error)[g, kept[g]].min() > (score + error)[g, ~kept[g]].max())
    return kept.expand(len(logits), n), clear


def check_equals_dense(subject: Subject, case: Case) -> None:
    """Where every token is kept, decode equals the package's own decode_dense."""
    step = make_step(subject, case)
    out, lse = step.decode(step.summarize())
    dense_out, dense_lse = step.decode_dense()
    for b, h, q, keys, values in step.rows:
        if subject.attends_to_all(step.lengths[b]):
            exact, heads = attention(subject.spec, q, keys, values, arithmetic_of(subject)), step.heads(h)
            wanted = dense_out[b, heads].cpu().double(), dense_lse[b, heads].cpu().double()
            assert_within(out[b, heads], wanted[0], 2 * exact.out_error, f"out of row {b}, KV head {h}")
            assert_within(lse[b, heads], wanted[1], 2 * exact.lse_error, f"lse of row {b}, KV head {h}")


def check_selection(subject: Subject, case: Case) -> None:
    """select_pages: the best P by the reference's scores of the kernel's summaries; forced pages; the list's form."""
    step = make_step(subject, case)
    summaries = step.summarize()
    selected = step.select_pages(summaries)
    assert selected.shape == (len(step.lengths), subject.kv_heads, subject.routed_pages)
    assert selected.dtype == torch.int32
    assert torch.equal(selected, step.select_pages(summaries)), "two calls select differently"
    routing = subject.spec["routing"]
    for b, h, q, _, _ in step.rows:
        n, pages = -(-step.lengths[b] // subject.page_size), selected[b, h].tolist()
        count, where = min(n, subject.routed_pages), f"row {b}, KV head {h}"
        assert pages[count:] == [-1] * (subject.routed_pages - count), f"{where}: not padded with -1: {pages}"
        chosen = pages[:count]
        assert chosen == sorted(set(chosen)) and all(0 <= p < n for p in chosen), f"{where}: {pages} of {n} pages"
        if n <= subject.routed_pages:
            continue
        forced = {*range(routing["sink_pages"]), *range(n - routing["recent_pages"], n)}
        assert forced <= set(chosen), f"{where}: sinks or recent pages {forced} are not in {chosen}"
        score, error = page_weights(step, summaries, b, h, q)
        free = torch.tensor([p not in forced for p in range(n)])
        mask = torch.zeros(n, dtype=torch.bool)
        mask[chosen] = True
        assert_ranked(mask[free], score[free], error[free], f"pages of {where}")


def page_weights(step: Step, summaries, b: int, h: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(score, bound on the kernel's error) [pages] by which the pages of one KV head are ranked."""
    subject, reference = step.subject, step.subject.package.reference
    routing, arithmetic = subject.spec["routing"], arithmetic_of(subject)
    exact, table, lengths = wide(summaries), step.block_table.cpu(), step.seq_lens.cpu()
    scores = reference.page_scores(step.q.cpu().double(), exact, table, lengths, b)[h]
    rows = reference.summary_values(exact, torch.tensor(step.pages()[b]))[:, h].double()
    span = routing.get("subpage", subject.page_size)
    starts = torch.arange(len(rows) * (subject.page_size // span)).view(len(rows), -1) * span
    sizes = (step.lengths[b] - starts).clamp(0, span)
    dl = page_score_error(subject.spec, q, rows, sizes, scores, arithmetic)
    if routing["group_reduce"] == "max":
        return scores.amax(0), dl.amax(0)
    p, error, _ = weight_error(scores, weight_exponent_error(scores, dl, 0))
    error = error.sum(0) + arithmetic.gamma(len(rows) + subject.group + 8) * p.sum(0)
    return p.sum(0), error + subject.group * VANISHED


def check_physical_pages(subject: Subject, case: Case) -> None:
    """A permutation of the physical pages, with the block table following it, changes no bit."""
    step = make_step(subject, case)
    summaries = step.summarize()
    before = step.select_pages(summaries), *step.decode(summaries), *step.decode_dense()
    draw = torch.Generator().manual_seed(case.seed + 1)
    to = torch.randperm(step.k_cache.shape[0], generator=draw).to(subject.device)
    for name in ("k_cache", "v_cache"):
        moved = torch.empty_like(getattr(step, name))
        moved[to] = getattr(step, name)
        setattr(step, name, moved)
    used = step.block_table != NO_PAGE
    step.block_table = torch.where(used, to[step.block_table.where(used, 0).long()].int(), NO_PAGE)
    summaries = step.summarize()
    after = step.select_pages(summaries), *step.decode(summaries), *step.decode_dense()
    assert all(map(torch.equal, before, after))


def check_rows_alone(subject: Subject, case: Case) -> None:
    """A row of a batch alone gives what it gives in the batch: bit for bit, or to rounding where splits differ."""
    step = make_step(subject, case)
    summaries = step.summarize()
    whole = step.select_pages(summaries), *step.decode(summaries), *step.decode_dense()
    for b, n in enumerate(step.lengths):
        only = slice(b, b + 1)
        alone = Step(
            subject, step.q[only], step.k_cache, step.v_cache, step.block_table[only], step.seq_lens[only],
            [n], step.keys[only], step.values[only],
        )  # fmt: skip
        found = alone.select_pages(summaries), *alone.decode(summaries), *alone.decode_dense()
        assert torch.equal(found[0], whole[0][only]), f"row {b} selects other pages alone"
        if subject.exact:
            assert all(map(torch.equal, found[1:], (x[only] for x in whole[1:]))), f"row {b} differs alone"


def check_page_lists(subject: Subject, case: Case) -> None:
    """selected_pages in any order, with pages listed twice, holes and pages behind the sequence: not a bit changes."""
    step = make_step(subject, case)
    draw = torch.Generator().manual_seed(case.seed)
    ordered = torch.full((len(step.lengths), subject.kv_heads, subject.routed_pages), -1, dtype=torch.int32)
    shuffled = ordered.clone()
    for b, n in enumerate(step.lengths):
        n = -(-n // subject.page_size)
        for h in range(subject.kv_heads):
            count = int(torch.randint(0, min(n, subject.routed_pages) + 1, (), generator=draw))
            pages = torch.randperm(n, generator=draw)[:count].int()
            ordered[b, h, :count] = pages.sort().values
            rest = subject.routed_pages - count
            junk = torch.cat([pages, torch.tensor([-1, -5, n, n + 7, 2**31 - 1], dtype=torch.int32)])
            filler = junk[torch.randint(0, len(junk), (rest,), generator=draw)]
            shuffled[b, h] = torch.cat([pages, filler])[torch.randperm(count + rest, generator=draw)]
    ordered, shuffled = ordered.to(subject.device), shuffled.to(subject.device)
    wanted = step.decode(None, selected_pages=ordered)
    got = step.decode(None, selected_pages=shuffled)
    assert all(map(torch.equal, wanted, got))
    arithmetic = arithmetic_of(subject)
    for b, h, q, keys, values in step.rows:
        tokens = candidates(subject, ordered[b, h], step.lengths[b])
        if subject.tokens_kept is None:
            exact, heads = attention(subject.spec, q, keys[tokens], values[tokens], arithmetic), step.heads(h)
            assert_within(got[0][b, heads], exact.out, exact.out_error, f"out of row {b}, KV head {h}")
            assert_within(got[1][b, heads], exact.lse, exact.lse_error, f"lse of row {b}, KV head {h}")


def check_merge(subject: Subject, case: Case, parts: int) -> None:
    """Attention over disjoint parts of a sequence's pages, merged, is attention to all of it; empty parts do not count.

    Part r is off by out_error_r and lse_error_r: merging weighs it by exp(lse_r), so lse_error_r is its dl.
    """
    step = make_step(subject, case)
    (batch, width), size = step.block_table.shape, subject.page_size
    owner = torch.randint(0, parts, (batch, width), generator=torch.Generator().manual_seed(case.seed))
    mine = lambda b, part: [p for p in range(len(step.pages()[b])) if owner[b, p] == part]
    states = []
    for part in range(parts):
        table = torch.full((batch, width), NO_PAGE, dtype=torch.int32)
        lengths = torch.zeros(batch, dtype=torch.int32)
        for b, pages in enumerate(step.pages()):
            table[b, : len(mine(b, part))] = torch.tensor([pages[p] for p in mine(b, part)], dtype=torch.int32)
            lengths[b] = sum(min(size, step.lengths[b] - p * size) for p in mine(b, part))
        out, lse = step.decode_dense(block_table=table.to(subject.device), seq_lens=lengths.to(subject.device))
        states.append((torch.where((lse == float("-inf"))[..., None], torch.nan, out), lse))
    merged, merged_lse = subject.package.merge_states(*map(torch.stack, zip(*states, strict=True)))
    assert merged.dtype == subject.dtype and merged_lse.dtype == torch.float32
    arithmetic = arithmetic_of(subject)
    for b, h, q, keys, values in step.rows:
        heads, where, exact = step.heads(h), f"row {b}, KV head {h}", []
        for part in range(parts):
            tokens = candidates(subject, torch.tensor(mine(b, part)), step.lengths[b])
            exact.append(attention(subject.spec, q, keys[tokens], values[tokens], arithmetic))
        if not len(keys):
            assert (merged[b, heads] == 0).all() and (merged_lse[b, heads] == float("-inf")).all(), where
            continue
        names = ("lse", "out", "lse_error", "out_error")
        lse, out, lse_error, out_error = (torch.stack([getattr(x, name) for x in exact], 1) for name in names)
        whole = softmax_sum(lse, weight_exponent_error(lse, lse_error, 0), out, 0, arithmetic)
        parts_error = ((whole.weights + whole.weights_error)[:, None] @ out_error)[:, 0]
        assert_within(merged[b, heads], whole.out, whole.out_error + parts_error, f"merged out of {where}")
        assert_within(merged_lse[b, heads], whole.lse, whole.lse_error, f"merged lse of {where}")
        direct = attention(subject.spec, q, keys, values, arithmetic)
        assert_within(whole.out, direct.out, direct.out_error, f"exact merge of {where}")
