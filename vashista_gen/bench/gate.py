"""Whether a contestant computes what it should, asked before any of its times is printed.

Errors are taken for each (sequence, query head) as ||out - truth|| / ||truth||, and of lse absolutely. Allowed:
float32: 1e-4. Rounding of weights and sums gives 1e-6 to 1e-5 on normal data; one token lost of T shows as
    1 / sqrt(e T) or more: 2e-3 at 64k tokens.
bfloat16, float16: 2 u of that type, u = eps / 2: the weights and the output are each rounded once to it.
Selected pages: 99 % of the reference's in float32, where only exact ties may fall either way; 90 % in a narrower type,
whose rounding of scores moves pages across the boundary.
"""

from __future__ import annotations

from types import ModuleType

import torch

from vashista_gen.bench.cases import Case, Inputs
from vashista_gen.bench.contestants import Contestant

FLOAT32_TOLERANCE = 1e-4
LSE_TOLERANCE = {torch.float32: 1e-4}
NARROW_LSE_TOLERANCE = 1e-3  # logits are summed in float32, whatever the type of q and K
NEAR_TIE = 2.0**-21  # relative, of a query: four roundings of a float32 product
NEAR_TIE_TRIES = 8


class WrongResult(Exception):
    """The message says which check failed, by how much, and what was allowed."""


def tolerance(dtype: torch.dtype) -> float:
    """Allowed relative error of an output."""
    return FLOAT32_TOLERANCE if dtype == torch.float32 else torch.finfo(dtype).eps


def check(contestant: Contestant, package: ModuleType, case: Case) -> float:
    """The worst error over all sets of inputs (for a selection the share of other pages). Raises WrongResult."""
    from vashista_gen.bench import guarantees

    judges = {name: getattr(guarantees, name) for name in ("tokens", "certificate", "solution", "renewal")}
    judge = (judges | {"selection": _selection, "summaries": _summaries}).get(contestant.kind, _attention)
    return max(judge(contestant, package, i, x) for i, x in enumerate(case.inputs))


def exact(
    q: torch.Tensor, inputs: Inputs, spec: dict, pages: torch.Tensor | None = None, *,
    listed: torch.Tensor | None = None, kept_heads: torch.Tensor | None = None,
) -> tuple:  # fmt: skip
    """(out, lse) = softmax over every token, or every token of `pages` [batch, kv heads, P], written out plainly.

    listed, kept_heads: instead of pages the tokens, and which heads keep each, as `select_tokens` gives them.

    float64 on a CPU; float32 on a GPU, where float64 costs more than the whole run.
    """
    wide = torch.float64 if q.device.type == "cpu" else torch.float32
    model, page_size, layout = spec["model"], spec["cache"]["page_size"], spec["cache"]["layout"]
    group = model["num_q_heads"] // model["num_kv_heads"]
    out, lse = torch.empty(q.shape, dtype=wide, device=q.device), torch.empty(q.shape[:2], dtype=wide, device=q.device)
    for b in range(len(q)):
        for h in range(model["num_kv_heads"]):
            keys, values = (inputs.head(c, layout, b, h) for c in (inputs.k_cache, inputs.v_cache))
            if pages is not None:
                kept = pages[b, h][pages[b, h] >= 0].long()
                rows = (kept[:, None] * page_size + torch.arange(page_size, device=q.device)).flatten()
                rows = rows[rows < len(keys)]
                keys, values = keys[rows], values[rows]
            if listed is not None:
                rows = listed[b, h][listed[b, h] >= 0].long()
                bits = kept_heads[b, h][listed[b, h] >= 0]
                keys, values = keys[rows], values[rows]
            heads = slice(h * group, (h + 1) * group)
            logits = model["sm_scale"] * (q[b, heads].to(wide) @ keys.to(wide).T)
            cap = model["logits_soft_cap"]
            logits = (logits if cap is None else cap * torch.tanh(logits / cap)) / spec["attention"]["epsilon"]
            if listed is not None:
                mine = (bits[None, :] >> torch.arange(group, device=q.device)[:, None]) & 1 == 1
                logits = logits.masked_fill(~mine, float("-inf"))
            lse[b, heads] = torch.logsumexp(logits, -1)
            out[b, heads] = torch.softmax(logits, -1) @ values.to(wide)
    return out, lse


def _attention(contestant, package, i, x):
    got = contestant.run(i, x)
    out, lse = got if isinstance(got, tuple) else (got.view(x.q.shape), None)
    if contestant.kind == "dense":
        return _compare(contestant, out, lse, *exact(x.q, x, package.SPEC))
    pages = package.select_pages(x.q, x.summaries, x.block_table, x.seq_lens)
    if contestant.kind == "pages":
        return _compare(contestant, out, lse, *exact(x.q, x, package.SPEC, pages))
    if package.SPEC["fallback"] == "expand" and contestant.name == "sparse":
        pages = None  # rows that fail are routed again, which given pages are not
    if _lists_tokens(package, x):
        # the tokens that the kernels chose: tests/op holds the choice to its bound, here is what attention makes of it
        listed, heads, _ = package.select_tokens(x.q, x.k_cache, x.block_table, x.seq_lens, x.summaries)
        return _compare(contestant, out, lse, *exact(x.q, x, package.SPEC, listed=listed, kept_heads=heads))
    reference = lambda q: package.reference.decode(*_with(q, x), x.summaries, selected_pages=pages)
    try:
        return _compare(contestant, out, lse, *reference(x.q.float()))
    except WrongResult as error:
        if not _has_thresholds(package.SPEC):
            raise
        return _near_tie(contestant, out, lse, reference, x.q.float(), error)


def _lists_tokens(package, x) -> bool:
    """Whether 16-bit arithmetic chose the tokens: which ones is then not the reference's choice to the last."""
    if x.q.dtype == torch.float32 or package.SPEC["fallback"] != "capped" or not hasattr(package, "select_tokens"):
        return False
    return x.block_table.shape[1] * package.SPEC["cache"]["page_size"] > package.op.ALWAYS_DENSE


def _has_thresholds(spec: dict) -> bool:
    """Whether a step chooses inside the routed pages, or acts on a certificate: at a tie rounding decides."""
    candidates = spec["candidates"]
    return candidates["tokens"] != "all" or candidates["pages"] is not None or spec["fallback"] != "capped"


def _near_tie(contestant, out, lse, reference, q, error):
    """With a token budget the last token kept may be one of two whose logits are equal but for rounding.

    Each row must agree with the reference for a query that is off by rounding.
    """
    generator = torch.Generator(q.device).manual_seed(0)
    best = torch.full(q.shape[:2], float("inf"), device=q.device)
    for _ in range(NEAR_TIE_TRIES):
        noise = torch.rand(q.shape, generator=generator, device=q.device) * 2 - 1
        truth, _ = reference(q * (1 + NEAR_TIE * noise))
        best = torch.minimum(best, _row_errors(out, truth).to(best.dtype))
    if not (best <= tolerance(out.dtype)).all():
        raise error
    return float(best.max())


def _with(q, x):
    return q, x.k_cache, x.v_cache, x.block_table, x.seq_lens


def _row_errors(out, truth):
    gap = (out.to(truth.dtype) - truth).norm(dim=-1) / truth.norm(dim=-1)
    return gap.nan_to_num(nan=float("inf"))


def _compare(contestant, out, lse, truth, true_lse):
    allowed = tolerance(out.dtype)
    worst = float(_row_errors(out, truth).max())
    if not worst <= allowed:
        raise WrongResult(f"{contestant.name}: output off by {worst:.2g} of its norm, allowed {allowed:.2g}")
    if lse is not None:
        allowed = LSE_TOLERANCE.get(out.dtype, NARROW_LSE_TOLERANCE)
        gap = float((lse.to(true_lse.dtype) - true_lse).abs().max())
        if not gap <= allowed:
            raise WrongResult(f"{contestant.name}: lse off by {gap:.2g}, allowed {allowed:.2g}")
    return worst


def _selection(contestant, package, i, x):
    got, wanted = contestant.run(i, x), package.reference.select_pages(x.q, x.summaries, x.block_table, x.seq_lens)
    if got.shape != wanted.shape or not ((got >= 0).sum(-1) == (wanted >= 0).sum(-1)).all():
        raise WrongResult(f"{contestant.name}: not as many pages as the reference selects")
    held = got[got >= 0].view(*got.shape[:2], -1)
    if not (held.diff(dim=-1) > 0).all():
        raise WrongResult(f"{contestant.name}: pages not ascending, or one of them twice")
    if int(held.max()) >= x.block_table.shape[1]:
        raise WrongResult(f"{contestant.name}: a page beyond the sequence")
    shared = (held[..., None] == wanted[..., None, :]).any(-1).double().mean()
    least = 0.99 if x.q.dtype == torch.float32 else 0.9
    if not shared >= least:
        raise WrongResult(f"{contestant.name}: {float(shared):.1%} of the reference's pages, allowed {least:.0%}")
    return 1 - float(shared)


def _summaries(contestant, package, i, x):
    """The last page's summary is spoiled, then renewed: every summary must be as in bulk, to the bit."""
    before = [tensor.clone() for tensor in x.summaries]
    last = x.block_table[:, -1].long()
    constant = {name for name, _ in package.checks.CONSTANTS}  # parts that are no page's
    of_tokens = {"sketch_codes", "sketch_residuals"}
    if package.SPEC["sketch"].get("transform") == "hadamard":
        of_tokens.add("sketch_scales")
    size, routing = package.SPEC["cache"]["page_size"], package.SPEC["routing"]
    tokens = (int(x.seq_lens[0]) - 1) % size + 1
    # those of a super-page lie at its last page, once it is full
    completes = int(x.seq_lens[0]) % (size * routing.get("super_pages", 1)) == 0
    for name, tensor in zip(x.summaries._fields, x.summaries, strict=True):
        if name not in constant and (completes or not name.startswith("super_")):
            # what lies behind the last token is nobody's, before as after
            where = (last, slice(None), slice(tokens)) if name in of_tokens else (last,)
            tensor[where] = 77 if tensor.dtype == torch.uint8 else 7
    contestant.run(i, x)
    # by their bytes: what nothing has written may be NaN
    same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(before, x.summaries, strict=True))
    for tensor, old in zip(x.summaries, before, strict=True):
        tensor.copy_(old)
    if not same:
        raise WrongResult(f"{contestant.name}: summaries differ from those made in bulk")
    return 0.0
