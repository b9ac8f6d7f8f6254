"""What must be true of a package's decode step, as functions of (subject, case): the same on every device and spec."""

from __future__ import annotations

import torch
from assertions import (
    assert_ranked,
    assert_within,
    attention,
    page_score_error,
    softmax_sum,
    token_page_score_error,
    weight_error,
    weight_exponent_error,
)
from strategies import Case

from .choice_properties import VANISHED, candidates, check_choice
from .sketch_properties import sketch_logits
from .subject import NO_PAGE, Step, Subject, arithmetic_of, make_step, wide
from .watch import Watched, watched_decode


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


def check_decode(subject: Subject, case: Case, budgets: int | None = None, pins: int = 0) -> None:
    """decode = softmax over the tokens it keeps of the pages it selects; it keeps the right ones, each counted once.

    budgets: a seed for budgets of every row and KV head; pins: how many pages are pinned.
    """
    step = make_step(subject, case)
    summaries, given = step.summarize(), more_arguments(step, budgets, pins)
    pinned = {name: given[name] for name in given if name == "pinned_pages"}
    selected = step.select_pages(summaries, **pinned)
    if subject.lists_tokens:
        found = watched_decode(step, summaries, **given)
    else:
        found = Watched(*(x.cpu() for x in step.decode(summaries, **given)), None, [])
    listed_out, listed_lse = step.decode(None, selected_pages=selected, **given)
    weights = token_weights(step, selected) if not given and not subject.retries else None
    host = lambda x: x.cpu().double() if x.is_floating_point() else x.cpu()
    ref_selected = subject.package.reference.select_pages(
        host(step.q), wide(summaries), host(step.block_table), host(step.seq_lens),
        **{name: host(x) for name, x in pinned.items()},
    )  # fmt: skip
    ref_out, ref_lse = subject.package.reference.decode(
        *map(host, (step.q, step.k_cache, step.v_cache, step.block_table, step.seq_lens)), wide(summaries),
        **{name: host(x) for name, x in given.items()},
    )  # fmt: skip
    arithmetic = arithmetic_of(subject)
    for b, h, q, keys, values in step.rows:
        where, heads, length = f"row {b}, KV head {h}", step.heads(h), step.lengths[b]
        clear = torch.equal(ref_selected[b, h], selected[b, h].cpu())
        for number, one in enumerate(found.rounds):
            if one.todo[b, h]:
                if number == 0:
                    assert torch.equal(one.pages[b, h], selected[b, h].cpu()), f"{where}: decode selects other pages"
                pinned_here = given["pinned_pages"][b].tolist() if pins else ()
                clear &= check_choice(step, summaries, one, b, h, q, keys, given.get("budgets"), pinned_here)
                clear &= not subject.retries  # a leakage near the tolerance may fall on either side
        kept = kept_of(step, found, selected, b, h)
        tokens = kept.any(0).nonzero()[:, 0]
        exact = attention(subject.spec, q, keys[tokens], values[tokens], arithmetic, kept[:, tokens])
        assert_within(found.out[b, heads], exact.out, exact.out_error, f"out of {where}")
        assert_within(found.lse[b, heads], exact.lse, exact.lse_error, f"lse of {where}")
        if clear:
            assert_within(ref_out[b, heads], exact.out, exact.out_error, f"reference's out of {where}")
            assert_within(ref_lse[b, heads], exact.lse, exact.lse_error, f"reference's lse of {where}")
        if subject.retries:
            continue  # a row that failed with the given pages is attended to in whole
        assert_within(listed_out[b, heads], exact.out, exact.out_error, f"out for given pages of {where}")
        assert_within(listed_lse[b, heads], exact.lse, exact.lse_error, f"lse for given pages of {where}")
        if weights is not None:
            routed = candidates(subject, selected[b, h], length)
            wanted, error = (torch.zeros(subject.group, length, dtype=torch.float64) for _ in "we")
            wanted[:, tokens], error[:, tokens] = exact.weights, exact.weights_error
            assert_within(weights[b][h], wanted[:, routed], error[:, routed], f"weights of {where}")


def more_arguments(step: Step, budgets: int | None, pins: int) -> dict[str, torch.Tensor]:
    """Budgets from 1 to K_c of every row and KV head, and pinned pages: -1, pages behind the sequence and real ones."""
    subject, given, batch = step.subject, {}, len(step.lengths)
    if budgets is not None and subject.lists_tokens:
        most = subject.tokens_kept or subject.routed_pages * subject.page_size
        draw = torch.Generator().manual_seed(budgets)
        given["budgets"] = torch.randint(1, most + 1, (batch, subject.kv_heads), generator=draw, dtype=torch.int32)
    if pins:
        draw = torch.Generator().manual_seed(pins)
        most = max(1, *(len(p) for p in step.pages())) + 2
        given["pinned_pages"] = torch.randint(-1, most, (batch, pins), generator=draw, dtype=torch.int32)
    return {name: x.to(subject.device) for name, x in given.items()}


def kept_of(step: Step, found: Watched, selected: torch.Tensor, b: int, h: int) -> torch.Tensor:
    """bool [group, n]: the tokens of a row that the step attends to."""
    subject, length = step.subject, step.lengths[b]
    everything = torch.ones(subject.group, length, dtype=torch.bool)
    if subject.lists_tokens:
        last = found.last(b, h)
        return everything if last is None else last.kept(b, h, subject.group, length)
    kept = torch.zeros_like(everything)
    kept[:, candidates(subject, selected[b, h], length)] = True
    return kept


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


def check_selection(subject: Subject, case: Case, pins: int = 0) -> None:
    """select_pages: the best P by the reference's scores of the kernel's summaries; forced pages; the list's form."""
    step = make_step(subject, case)
    summaries, given = step.summarize(), more_arguments(step, None, pins)
    selected = step.select_pages(summaries, **given)
    assert selected.shape == (len(step.lengths), subject.kv_heads, subject.routed_pages)
    assert selected.dtype == torch.int32
    assert torch.equal(selected, step.select_pages(summaries, **given)), "two calls select differently"
    by_reference = subject.package.reference.select_pages(
        step.q.cpu().double(), wide(summaries), step.block_table.cpu(), step.seq_lens.cpu(),
        **{name: x.cpu() for name, x in given.items()},
    )  # fmt: skip
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
        scored = range(n)
        if routing["levels"] == 2:
            scored = check_beam(step, summaries, given, b, h, q)
            assert set(chosen) <= set(scored), f"{where}: {chosen} of the beam's {scored}"
        if pins:
            pinned = sorted({p for p in given["pinned_pages"][b].tolist() if p in scored} - forced)
            pinned = pinned[: subject.routed_pages - len(forced)]
            assert set(pinned) <= set(chosen), f"{where}: pinned pages {pinned} are not in {chosen}"
            if routing["levels"] == 1:  # of two levels the beams may differ, where super-pages weigh about the same
                others = by_reference[b, h].tolist()
                assert set(pinned) <= set(others), f"{where}: pinned pages {pinned} are not in the reference's {others}"
            forced |= set(pinned)
        score, error = page_weights(step, *page_score_bound(step, summaries, b, h, q, scored))
        free = torch.tensor([p not in forced for p in scored])
        mask = torch.tensor([p in chosen for p in scored])
        assert_ranked(mask[free], score[free], error[free], f"pages of {where}")


def check_beam(step: Step, summaries, given, b: int, h: int, q: torch.Tensor) -> list[int]:
    """The beam is the best super-pages by the reference's scores of their summaries; returns the pages in it."""
    subject, routing, op = step.subject, step.subject.spec["routing"], step.subject.part("op")
    size, width = routing["super_pages"], routing["beam"]
    n = -(-step.lengths[b] // subject.page_size)
    held = -(-n // size)
    pins = given.get("pinned_pages", torch.empty(len(step.lengths), 0, dtype=torch.int32, device=subject.device))
    lib, dims = op._library(step.q), op._dims(step.k_cache, step.v_cache, step.block_table)
    todo = [torch.ones(len(step.lengths), subject.kv_heads, dtype=torch.int32, device=subject.device)]
    arguments = (lib, step.q, summaries, None, step.block_table, step.seq_lens, pins, dims)
    scores, selected, _ = op._route(*arguments, *todo[: int(subject.retries)])
    assert torch.equal(selected, step.select_pages(summaries, **given)), "two calls select differently"
    beam, where = scores[2][b, h].tolist(), f"row {b}, KV head {h}"
    if not beam:
        assert step.block_table.shape[1] <= width * size, f"{where}: no beam"
        return list(range(n))
    chosen = beam[: min(held, width)]
    assert beam[len(chosen) :] == [-1] * (width - len(chosen)) and chosen == sorted(set(chosen)), f"{where}: beam {beam}"
    assert all(0 <= s < held for s in chosen), f"{where}: beam {beam} of {held}"
    if held > width:
        recent = -(-(routing["recent_pages"] - 1) // size) + 1
        forced = {*range(-(-routing["sink_pages"] // size)), *range(held - recent, held)}
        assert forced <= set(chosen), f"{where}: {forced} are not in the beam {chosen}"
        pinned = {p // size for p in pins[b].tolist() if 0 <= p < n} - forced
        pinned = set(sorted(pinned)[: width - len(forced)])
        assert pinned <= set(chosen), f"{where}: super-pages {pinned} of pinned pages are not in the beam {chosen}"
        whole = step.lengths[b] // (size * subject.page_size)
        scores, error = page_weights(step, *super_score_bound(step, summaries, b, h, q))
        free = torch.tensor([s not in forced | pinned for s in range(whole)])
        mask = torch.tensor([s in chosen for s in range(whole)])
        assert_ranked(mask[free], scores[free], error[free], f"super-pages of {where}")
    return [p for s in chosen for p in range(s * size, min((s + 1) * size, n))]


def super_score_bound(step: Step, summaries, b: int, h: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores of one KV head's whole super-pages by the reference, bound on the kernel's error), both [group, n]."""
    subject, reference = step.subject, step.subject.package.reference
    size = subject.spec["routing"]["super_pages"]
    whole = step.lengths[b] // (size * subject.page_size)
    exact = wide(summaries)
    arguments = step.q.cpu().double(), exact, step.block_table.cpu(), step.seq_lens.cpu(), b
    scores = reference.super_page_scores(*arguments)[h][:, :whole]
    pages = torch.tensor(step.pages()[b])[size - 1 : whole * size : size]
    rows = _row_sizes(reference.super_summaries(exact), reference, pages, h)
    span = size * subject.spec["routing"].get("subpage", subject.page_size)
    sizes = torch.full((whole, size * subject.page_size // span), span)
    return scores, page_score_error(subject.spec, q, rows, sizes, scores, arithmetic_of(subject))


def page_weights(step: Step, scores: torch.Tensor, dl: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(score, bound on the kernel's error) [pages] by which the pages of one KV head are ranked, of those of each head."""
    if step.subject.spec["routing"]["group_reduce"] == "max":
        return scores.amax(0), dl.amax(0)
    p, error, _ = weight_error(scores, weight_exponent_error(scores, dl, 0))
    error = error.sum(0) + arithmetic_of(step.subject).gamma(scores.shape[-1] + step.subject.group + 8) * p.sum(0)
    return p.sum(0), error + step.subject.group * VANISHED


def page_score_bound(
    step: Step, summaries, b: int, h: int, q: torch.Tensor, scored=slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores of one KV head's pages by the reference, bound on the kernel's error), both [group, pages scored]."""
    subject, reference = step.subject, step.subject.package.reference
    exact, table, lengths = wide(summaries), step.block_table.cpu(), step.seq_lens.cpu()
    scores = reference.page_scores(step.q.cpu().double(), exact, table, lengths, b)[h]
    if subject.spec["routing"]["summary"] != "sketch":
        rows = _row_sizes(exact, reference, torch.tensor(step.pages()[b]), h)
        scored = scored if isinstance(scored, slice) else list(scored)
        return scores[:, scored], _summary_score_error(step, b, q, rows, scores)[:, scored]
    _, error, _ = sketch_logits(step, summaries, b, h, q)
    worst = torch.stack([x.amax(-1) for x in error.split(subject.page_size, -1)], -1)
    return scores, token_page_score_error(worst, scores, subject.page_size)


def _row_sizes(exact, reference, pages: torch.Tensor, h: int) -> torch.Tensor:
    """[pages, rows, d]: what the roundings of a score from these summaries, in float64, are in proportion to."""
    rows = reference.summary_values(exact, pages)[:, h].double()
    if "spread" in type(exact)._fields:
        return exact.center[h].abs() + (rows - exact.center[h]).abs()  # <q, c> and the codes' part may cancel
    return rows


def _summary_score_error(step: Step, b: int, q: torch.Tensor, rows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Bound [group, pages] on a kernel's page scores from summary rows [pages, rows, d]."""
    subject, routing = step.subject, step.subject.spec["routing"]
    span = routing.get("subpage", subject.page_size)
    starts = torch.arange(len(rows) * (subject.page_size // span)).view(len(rows), -1) * span
    sizes = (step.lengths[b] - starts).clamp(0, span)
    return page_score_error(subject.spec, q, rows, sizes, scores, arithmetic_of(subject))


def check_physical_pages(subject: Subject, case: Case) -> None:
    """A permutation of the physical pages, with the block table following it, changes no bit."""
    step = make_step(subject, case)
    summaries = step.summarize()
    before = step.select_pages(summaries), *step.certify(summaries), *step.decode_dense()
    draw = torch.Generator().manual_seed(case.seed + 1)
    to = torch.randperm(step.k_cache.shape[0], generator=draw).to(subject.device)
    for name in ("k_cache", "v_cache"):
        moved = torch.empty_like(getattr(step, name))
        moved[to] = getattr(step, name)
        setattr(step, name, moved)
    used = step.block_table != NO_PAGE
    step.block_table = torch.where(used, to[step.block_table.where(used, 0).long()].int(), NO_PAGE)
    summaries = step.summarize()
    after = step.select_pages(summaries), *step.certify(summaries), *step.decode_dense()
    assert all(map(same, before, after))


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Bit for bit; NaN, which certificates hold where nothing is audited, equals NaN."""
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.where(~x.isnan(), 0), y.where(~y.isnan(), 0))


def check_rows_alone(subject: Subject, case: Case) -> None:
    """A row of a batch alone gives what it gives in the batch: bit for bit, or to rounding where splits differ."""
    step = make_step(subject, case)
    summaries = step.summarize()
    whole = step.select_pages(summaries), *step.certify(summaries), *step.decode_dense()
    for b, n in enumerate(step.lengths):
        only = slice(b, b + 1)
        alone = Step(
            subject, step.q[only], step.k_cache, step.v_cache, step.block_table[only], step.seq_lens[only],
            [n], step.keys[only], step.values[only],
        )  # fmt: skip
        found = alone.select_pages(summaries), *alone.certify(summaries), *alone.decode_dense()
        assert torch.equal(found[0], whole[0][only]), f"row {b} selects other pages alone"
        if subject.exact:
            assert all(map(same, found[1:], (x[only] for x in whole[1:]))), f"row {b} differs alone"


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
    wanted = step.certify(None, selected_pages=ordered)
    got = step.certify(None, selected_pages=shuffled)
    assert all(map(same, wanted, got))
    arithmetic = arithmetic_of(subject)
    for b, h, q, keys, values in step.rows:
        tokens = candidates(subject, ordered[b, h], step.lengths[b])
        if subject.tokens_kept is None and not subject.retries:
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
