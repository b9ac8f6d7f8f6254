"""What certificates claim: rigorous ones bound the truth at any magnitude, all equal the reference's to rounding."""

from __future__ import annotations

import math

import torch
from assertions import U, assert_within, attention, logits_of

from .choice_properties import candidates
from .properties import kept_of, page_score_bound, same
from .sketch_properties import sketch_logits
from .subject import Step, Subject, arithmetic_of, make_step, wide
from .watch import FIELDS, Round, Watched, watched_decode

INF = float("inf")
SETTLED = (INF, INF, -INF, 0.0)  # support gaps, log_omitted and leakage where every token is attended to


def rigour(subject: Subject, length: int) -> float:
    """Nats that the kernel's sums are taken outward by: 2^-14 and 2 u a token, whole pages counted."""
    pages = -(-length // subject.page_size)
    return 2.0**-14 + 2 * U * pages * subject.page_size


def truth(step: Step, kept: torch.Tensor, q, keys, values, out) -> dict[str, torch.Tensor]:
    """The exact support gap, log of the omitted mass, leakage and |o - exact o| of one row, [group] in float64."""
    logits, _ = logits_of(step.subject.spec, q, keys)
    omitted, chosen = logits.masked_fill(kept, -INF), logits.masked_fill(~kept, INF)
    log_omitted = torch.logsumexp(omitted, -1)
    exact = torch.softmax(logits, -1) @ values
    return {
        "support_gap": step.subject.spec["attention"]["epsilon"] * (chosen.amin(-1) - omitted.amax(-1)),
        "log_omitted": log_omitted,
        "leakage": torch.exp(log_omitted - torch.logsumexp(logits, -1)),
        "error_bound": (out - exact).norm(dim=-1),
    }


def check_certificate(subject: Subject, case, listed: bool = False, origin: bool = False) -> None:
    """Every round's certificate, and what comes of the rows that fail.

    listed: over given pages, few and many. origin: keys are sketched about 0 instead of their mean.
    """
    step = make_step(subject, case)
    if origin:
        step.calibration = subject.calibration(torch.Generator().manual_seed(case.seed))
        step.calibration.center.zero_()
        step.calibration.balance.fill_(1.0)
    summaries, given = step.summarize(), {}
    if listed:
        given["selected_pages"] = some_pages(step, case.seed).to(subject.device)
    found = watched_decode(step, summaries, **given)
    assert tuple(type(step.decode(summaries, return_certificate=True)[2])._fields) == FIELDS
    for b, h, q, keys, values in step.rows:
        row = (b, h, q, keys, values)
        for number, one in enumerate(found.rounds):
            before = found.rounds[number - 1] if number else None
            if one.todo[b, h]:
                check_round(step, summaries, one, row)
            else:
                heads, where = step.heads(h), f"row {b}, KV head {h}: it passed and was touched"
                assert same(one.certificate[:, b, heads], before.certificate[:, b, heads]), where
                assert same(one.lse[b, heads], before.lse[b, heads]) and same(
                    one.out[b, heads], before.out[b, heads]
                ), where
        check_outcome(step, found, row)


def some_pages(step: Step, seed: int) -> torch.Tensor:
    """int32 [batch, kv heads, P]: some of the pages of each row, in random order, -1 padded; none for some rows."""
    subject, draw = step.subject, torch.Generator().manual_seed(seed)
    pages = torch.full((len(step.lengths), subject.kv_heads, subject.routed_pages), -1, dtype=torch.int32)
    for b, row in enumerate(step.pages()):
        for h in range(subject.kv_heads):
            count = int(torch.randint(0, min(len(row), subject.routed_pages) + 1, (), generator=draw))
            pages[b, h, :count] = torch.randperm(len(row), generator=draw)[:count].int()
    return pages


def check_round(step: Step, summaries, one: Round, row) -> None:
    """One row's certificate after a round: NaN where it is not audited, bounds or estimates where it is."""
    subject, (b, h, q, keys, values) = step.subject, row
    length, heads, where = step.lengths[b], step.heads(h), f"row {b}, KV head {h}, growth {one.growth}"
    certificate = dict(zip(FIELDS, one.certificate[:, b, heads].double(), strict=True))
    if not subject.audited(length, h):
        assert all(certificate[name].isnan().all() for name in FIELDS[:5]) and not certificate["certified"].any(), where
        assert not one.failed[b, h], f"{where}: not audited, yet to be done again"
        return
    assert not any(x.isnan().any() for x in certificate.values()), f"{where}: NaN"
    tolerance = torch.tensor(subject.spec["certificate"]["tolerance"], dtype=torch.float32).double()
    passed = certificate["leakage"] <= tolerance
    assert torch.equal(certificate["certified"], passed.double()), f"{where}: certified is leakage <= tolerance"
    assert bool(one.failed[b, h]) == (subject.retries and not passed.all()), f"{where}: done again"
    kept = one.kept(b, h, subject.group, length)
    nothing = kept.all(-1)
    for name, value in zip(FIELDS, SETTLED, strict=False):
        if name != "support_gap_scored":
            assert (certificate[name][nothing] == value).all(), f"{where}: {name} with nothing left out"
    out = one.out[b, heads].double()
    if length:
        compare_with_reference(step, summaries, one, row, certificate, kept, out, where)
    if subject.certificate == "rigorous" and length:
        exact = truth(step, kept, q, keys, values, out)
        check_bounds(certificate, exact, where)
        check_not_vacuous(step, summaries, b, h, q, certificate, exact, kept, where)


def check_bounds(certificate, exact, where: str) -> None:
    """U, delta and the error bound are at least, the support gap at most, what is true."""
    tiny = 2.0**-40  # of the float64 arithmetic of this test
    for name, sign in (("support_gap", -1), ("log_omitted", 1), ("leakage", 1), ("error_bound", 1)):
        claimed, true = certificate[name], exact[name]
        holds = (claimed == true) | (sign * (claimed - true) >= -tiny * true.abs())
        assert holds.all(), f"{where}: {name} {claimed.tolist()} claimed, {true.tolist()} true"


def check_not_vacuous(step: Step, summaries, b, h, q, certificate, exact, kept, where: str) -> None:
    """log U - log(true U) <= 2 scale ||q / b|| max residual, the kernel's rounding of a bound, and outward sums."""
    subject, length = step.subject, step.lengths[b]
    logits, error, reach = sketch_logits(step, summaries, b, h, q)
    worst = (2 * reach + 8 * error).masked_fill(kept, 0.0).amax(-1)
    top = torch.maximum(exact["log_omitted"].abs(), logits.abs().masked_fill(kept, 0.0).amax(-1)).nan_to_num(posinf=0.0)
    slack = worst * (1 + 2.0**-10) + 2 * rigour(subject, length) + 256 * U * (top + worst + 1)
    excess = (certificate["log_omitted"] - exact["log_omitted"]).nan_to_num(0.0)
    assert (excess <= slack).all(), f"{where}: log U {excess.tolist()} too large, {slack.tolist()} at most"


def compare_with_reference(step: Step, summaries, one: Round, row, certificate, kept, out, where: str) -> None:
    """The reference's certificate in float64, of the kernel's own choice, out and lse.

    Rigorous ones are outward by the rounding of logits and sums; estimates are off by that of the scores they add up.
    """
    subject, (b, h, *_) = step.subject, row
    reference, heads, length = subject.package.reference, step.heads(h), step.lengths[b]
    host = lambda x: x.cpu().double() if x.is_floating_point() else x.cpu()
    exact, table, lens = wide(summaries), step.block_table.cpu(), step.seq_lens.cpu()
    tokens = candidates(subject, one.pages[b, h], length)
    scores = reference.token_scores(host(step.q), host(step.k_cache), table, exact, b, h, tokens)
    wanted = reference.certify(
        host(step.q), host(step.k_cache), host(step.v_cache), table, lens, exact,
        {(b, h): (tokens, kept[:, tokens], scores)}, one.pages, one.out.double(), one.lse.double(),
    )  # fmt: skip
    wanted = {name: getattr(wanted, name)[b, heads].double() for name in FIELDS}
    lse = one.lse[b, heads].double()
    slack = certificate_slack(step, summaries, one, row, lse)
    for name in ("support_gap", "support_gap_scored", "log_omitted"):
        got, want = certificate[name], wanted[name]
        off = (got - want).abs()
        text = f"{where}: {name} {got.tolist()}, reference {want.tolist()}, slack {slack.tolist()}"
        assert ((got == want) | (off <= slack)).all(), text
    # the logistic function's slope is at most 1/4, and relative to its value at most 1
    leak, off = wanted["leakage"], (certificate["leakage"] - wanted["leakage"]).abs()
    relative = torch.where(slack < 20, leak * torch.expm1(2 * slack.clamp(max=20.0)), 1.0)
    bound = torch.minimum(relative, slack / 2) + leak * 2.0**-12 + 2.0**-119
    assert (off <= bound).all(), f"{where}: leakage {certificate['leakage'].tolist()}, reference {leak.tolist()}"
    radius = exact.radii[step.pages()[b], h, 0].amax()
    reach = radius + (out - exact.value_center[h]).norm(dim=-1)
    least = certificate["leakage"] * reach * (1 - 2.0**-20)
    longest = out.norm(dim=-1) + reach
    stored = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[subject.dtype]
    rounded = (stored + 2.0**-11 + 2 * rigour(subject, length)) * longest
    most, got = (certificate["leakage"] + slack).clamp(max=1) * reach + rounded, certificate["error_bound"]
    assert (got >= least).all(), f"{where}: error bound below leakage times radius"
    assert (got <= most * (1 + 2.0**-10)).all(), f"{where}: error bound {got.tolist()}, {most.tolist()} at most"


def certificate_slack(step: Step, summaries, one: Round, row, lse) -> torch.Tensor:
    """Nats [group] that a certificate's logarithms may differ from the reference's by.

    Kept logits are off, or taken outward, by gamma(d) ||q|| max ||k||; sums by `rigour`; sketches' logits by what a dot
    product with them is, page scores by their own bound.
    """
    subject, (b, h, q, keys, _) = step.subject, row
    model, arithmetic = subject.spec["model"], arithmetic_of(subject)
    scale = model["sm_scale"] / subject.spec["attention"]["epsilon"]
    longest = q.norm(dim=-1) * keys.norm(dim=-1).amax()
    kept_error = 2 * scale * (arithmetic.add / U) * (subject.head_dim + 16) * U * longest
    logits, _ = logits_of(subject.spec, q, keys)
    size = logits.abs().amax(-1) + lse.abs().nan_to_num(posinf=0.0)
    if subject.certificate == "estimate":
        scores, error = page_score_bound(step, summaries, b, h, q)
        score_error, size = error.amax(-1), size + scores.abs().amax(-1)
    else:
        sketched, error, reach = sketch_logits(step, summaries, b, h, q)
        score_error, size = 8 * error.amax(-1), size + sketched.abs().amax(-1) + reach.amax(-1)
    cap = 20 * U * model["logits_soft_cap"] / subject.spec["attention"]["epsilon"] if model["logits_soft_cap"] else 0.0
    sums = 4 * rigour(subject, step.lengths[b]) + 256 * U * (size + math.log(len(keys) + 1) + 1)
    return kept_error + score_error + cap + sums


def check_outcome(step: Step, found: Watched, row) -> None:
    """Rows that passed are what the last round gave, bit for bit; rows that failed are attended to in whole."""
    subject, (b, h, q, keys, values) = step.subject, row
    heads, length, where = step.heads(h), step.lengths[b], f"row {b}, KV head {h}"
    certificate = dict(zip(FIELDS, (x[b, heads].double() for x in found.certificate), strict=True))
    if found.rounds and not found.rounds[-1].failed[b, h]:
        last = found.rounds[-1]
        assert same(found.out[b, heads], last.out[b, heads]) and same(found.lse[b, heads], last.lse[b, heads]), where
        assert same(torch.stack([x.float() for x in found.certificate])[:, b, heads], last.certificate[:, b, heads]), (
            where
        )
        return
    if not subject.audited(length, h):
        assert all(certificate[name].isnan().all() for name in FIELDS[:5]) and not certificate["certified"].any(), where
        return
    if not length:
        return
    for name, value in zip(FIELDS, SETTLED, strict=False):
        assert (certificate[name] == value).all(), f"{where}: {name} of a row attended to in whole"
    assert certificate["certified"].all()
    if subject.certificate == "rigorous":
        everything = torch.ones(subject.group, length, dtype=torch.bool)
        exact = truth(step, everything, q, keys, values, found.out[b, heads].double())
        check_bounds(certificate, exact, where)


def check_failed_rows_are_dense(subject: Subject, case) -> int:
    """Rows whose certificate failed equal decode_dense up to rounding. How many there were."""
    step = make_step(subject, case)
    found = watched_decode(step, step.summarize())
    dense_out, dense_lse = (x.cpu().double() for x in step.decode_dense())
    failed = 0
    for b, h, q, keys, values in step.rows:
        if not found.rounds or not found.rounds[-1].failed[b, h]:
            continue
        failed += 1
        assert kept_of(step, found, found.rounds[-1].pages, b, h).all()
        exact, heads = attention(subject.spec, q, keys, values, arithmetic_of(subject)), step.heads(h)
        assert_within(found.out[b, heads], dense_out[b, heads], 2 * exact.out_error, f"out of row {b}, KV head {h}")
        assert_within(found.lse[b, heads], dense_lse[b, heads], 2 * exact.lse_error, f"lse of row {b}, KV head {h}")
    return failed
