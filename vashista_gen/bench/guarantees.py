"""Whether a package's other promises hold: its lists of tokens, its certificates, its projections. `gate` calls these.

Each takes (contestant, package, set number, inputs), returns a worst error and raises WrongResult.
tokens: the list is the reference's but for ties: 99 % of it in float32; in a narrower type, whose rounding moves pages
    and tokens across boundaries, 80 %.
renewal: a routing's pages for longer sequences are the reference's, and the step that keeps them reads these.
certificate: what is audited is finite and says of itself what it is (leakage of log_omitted, certified of leakage); a
    rigorous one is no less than the mass that softmax over every token has outside, and than the error of the output.
solution: with the keys in the values' place the output is y, and |y - y*| <= sqrt(2 gap) for the package's gap and the
    reference's, on the same tokens.
"""

from __future__ import annotations

import math

import torch

from vashista_gen.bench.gate import LSE_TOLERANCE, NARROW_LSE_TOLERANCE, WrongResult, exact, tolerance

LEAST_SHARED = {torch.float32: 0.99}
NARROW_LEAST_SHARED = 0.8
GAP_GROWTH, GAP_ROUNDING = 4.0, 2.0**-6  # a gap is at most that many times the reference's, plus that share of |q'|^2


def tokens(contestant, package, i, x) -> float:
    """The share of the reference's tokens that the list lacks."""
    listed, heads, counts = contestant.run(i, x)
    wanted, _, _ = package.reference.select_tokens(x.q.float(), x.k_cache, x.block_table, x.seq_lens, x.summaries)
    there = listed >= 0
    if not torch.equal(there.sum(-1), counts.long()) or not (listed.where(there, 2**31 - 1).diff(dim=-1) >= 0).all():
        raise WrongResult(f"{contestant.name}: counts do not fit, or tokens are not ascending")
    if not ((listed < x.seq_lens[:, None, None]) | ~there).all() or not (heads[there] != 0).all():
        raise WrongResult(f"{contestant.name}: a token beyond the sequence, or one that no head keeps")
    shared = []
    for b in range(len(listed)):
        for h in range(listed.shape[1]):
            mine, theirs = listed[b, h][there[b, h]], wanted[b, h][wanted[b, h] >= 0]
            shared.append(int(torch.isin(mine, theirs).sum()) / max(len(mine), len(theirs), 1))
    found, least = sum(shared) / len(shared), LEAST_SHARED.get(x.q.dtype, NARROW_LEAST_SHARED)
    if not found >= least:
        raise WrongResult(f"{contestant.name}: {found:.1%} of the reference's tokens, allowed {least:.0%}")
    return 1 - found


def renewal(contestant, package, i, x) -> float:
    """0: the renewed list is the reference's, and the step is `decode` of that list, to the bit."""
    renewed, pages, lens, out, second = contestant.run(i, x)
    wanted = package.reference.renew_pages(package.Routing(pages, lens, True), x.block_table, x.seq_lens)
    if not torch.equal(renewed, wanted):
        raise WrongResult(f"{contestant.name}: another list than the reference's")
    if x.block_table.shape[1] * package.SPEC["cache"]["page_size"] <= getattr(package.op, "ALWAYS_DENSE", 0):
        given = package.decode_dense(*x.paged)
    else:
        given = package.decode(*x.paged, x.summaries, selected_pages=renewed)
    if not (torch.equal(out, given[0]) and torch.equal(second, given[1])):
        raise WrongResult(f"{contestant.name}: another result than of the renewed list")
    return 0.0


def certificate(contestant, package, i, x) -> float:
    """The most that the stated leakage is under the true one, 0 if nowhere; judged where the kind is rigorous."""
    spec, fallback, model = (package.SPEC[key] for key in ("certificate", "fallback", "model"))
    group = model["num_q_heads"] // model["num_kv_heads"]
    out, lse, *certificate = contestant.run(i, x)
    gap, scored, log_omitted, leakage, bound, certified = certificate
    plain = package.decode(x.q, x.k_cache, x.v_cache, x.block_table, x.seq_lens, x.summaries)
    if not (torch.equal(out, plain[0]) and torch.equal(lse, plain[1])):
        raise WrongResult(f"{contestant.name}: asking for it changes the result")
    rows = [[package.reference.audited(n, h) for h in range(out.shape[1] // group)] for n in x.seq_lens.tolist()]
    audited = torch.tensor(rows, device=out.device).repeat_interleave(group, 1)
    numbers = torch.stack([gap, scored, log_omitted, leakage, bound])
    if numbers[:, audited].isnan().any() or not numbers[:, ~audited].isnan().all() or certified[~audited].any():
        raise WrongResult(f"{contestant.name}: NaN where heads are audited, or numbers where they are not")
    stated = torch.sigmoid(log_omitted - lse)[audited]
    if not ((stated - leakage[audited]).abs() <= NARROW_LSE_TOLERANCE).all():
        raise WrongResult(f"{contestant.name}: leakage is not that of log_omitted")
    if not torch.equal(certified[audited], leakage[audited] <= spec["tolerance"]):
        raise WrongResult(f"{contestant.name}: certified is not leakage <= {spec['tolerance']}")
    if fallback != "capped" and not certified[audited].all():
        raise WrongResult(f"{contestant.name}: an audited head is not certified after fallback {fallback}")
    truth, true_lse = exact(x.q, x, package.SPEC)
    under = ((1 - torch.exp(lse.to(true_lse.dtype) - true_lse)) - leakage)[audited]
    error = (out.to(truth.dtype) - truth).norm(dim=-1) - tolerance(out.dtype) * truth.norm(dim=-1)
    worst = float(under.max().clamp(min=0)) if under.numel() else 0.0
    if spec["kind"] == "rigorous":
        allowed = LSE_TOLERANCE.get(out.dtype, NARROW_LSE_TOLERANCE)
        if not worst <= allowed:
            raise WrongResult(f"{contestant.name}: leakage understated by {worst:.2g}, allowed {allowed:.2g}")
        if not (error <= bound)[audited].all():
            raise WrongResult(f"{contestant.name}: an output is further off than its error_bound")
    return worst


def solution(contestant, package, i, x) -> float:
    """|y - y_ref| / |y_ref|, the keys in the values' place."""
    model = package.SPEC["model"]
    out, gap = contestant.run(i, x)
    arguments = (x.block_table, x.seq_lens)
    listed, heads, _ = package.select_tokens(x.q, x.k_cache, *arguments, x.summaries)
    y, again = package.decode(x.q, x.k_cache, x.k_cache, *arguments, x.summaries)
    if not torch.equal(gap, again):
        raise WrongResult(f"{contestant.name}: the gap depends on the values")
    solve = lambda values: package.reference.solve_tokens(x.q.float(), x.k_cache, values, *arguments, listed, heads)
    (wanted, least), (wanted_out, _) = solve(x.k_cache), solve(x.v_cache)
    if not (gap.isfinite() | ~least.isfinite()).all() or not (gap >= 0).all():
        raise WrongResult(f"{contestant.name}: a gap that claims nothing, or is negative")
    target = (model["sm_scale"] * x.q.float()).square().sum(-1)
    if not (gap <= GAP_GROWTH * least + GAP_ROUNDING * target).all():
        raise WrongResult(f"{contestant.name}: gap {float(gap.max()):.2g}, the reference's {float(least.max()):.2g}")
    off = (y.float() - wanted).norm(dim=-1)
    rounding = tolerance(x.q.dtype) * wanted.norm(dim=-1)
    if not (off <= (2 * gap).sqrt() + (2 * least).sqrt() + rounding).all():
        worst = float(off.max())
        raise WrongResult(f"{contestant.name}: y further from the reference's than the gaps allow, {worst:.2g}")
    _values(contestant, package, x, (out, gap), (wanted_out, least), listed)
    return float((off / wanted.norm(dim=-1)).max())


def _values(contestant, package, x, found, wanted, listed) -> None:
    """The output proper: within what the gaps allow of an entropic projection, in the values' ball of a hard one."""
    spec, (out, gap), (truth, least) = package.SPEC, found, wanted
    group, epsilon = spec["model"]["num_q_heads"] // spec["model"]["num_kv_heads"], spec["attention"]["epsilon"]
    for b in range(len(out)):
        for h in range(listed.shape[1]):
            heads = slice(h * group, (h + 1) * group)
            values = x.head(x.v_cache, spec["cache"]["layout"], b, h)[listed[b, h][listed[b, h] >= 0].long()].float()
            reach = values.norm(dim=-1).max() * (1 + tolerance(out.dtype))
            if spec["attention"]["solver"] == "entropic_projection":
                radius = (values - values.mean(0)).norm(dim=-1).max()
                allowed = radius * math.sqrt(2 / epsilon) * (gap[b, heads].sqrt() + least[b, heads].sqrt())
                allowed = allowed + tolerance(out.dtype) * truth[b, heads].norm(dim=-1)
                right = (out[b, heads].float() - truth[b, heads]).norm(dim=-1) <= allowed
            else:
                right = out[b, heads].float().norm(dim=-1) <= reach
            if not right.all():
                raise WrongResult(f"{contestant.name}: output further off than the gaps allow (row {b}, KV head {h})")
