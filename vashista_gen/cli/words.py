"""What a plan decides, in words: the summary, the routing, the candidates, and what each kernel reads and gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vashista_gen.plan import Plan, cost


@dataclass(frozen=True)
class Kernel:
    """One kernel: when it runs (a key of WHEN), what it reads and what it gives."""

    when: str
    reads: str
    gives: str


KERNELS = {
    "summarize": Kernel("append", "K of the pages appended to", "what is kept of them, in place"),
    "route_pages": Kernel("step", "q, summaries of super-pages and of the beam's pages", "the four below's, in one launch"),
    "route_rows": Kernel("step", "the same, for more rows than multiprocessors", "the same"),
    "score_super_pages": Kernel("step", "q, summaries of super-pages, block_table", "a score for each query head and one"),
    "select_super_pages": Kernel("step", "super-page scores", "the beam for each KV head"),
    "score_pages": Kernel("step", "q, summaries of every page, block_table", "a score for each query head and page"),
    "select_pages": Kernel("step", "page scores", "selected_pages: P for each KV head"),
    "renew_pages": Kernel("between", "pages of the last routing, seq_lens", "selected_pages for the present lengths"),
    "order_pages": Kernel("instead", "pages given by the caller", "selected_pages, ascending, each once"),
    "prepare_queries": Kernel("step", "q, centres, balances", "rotated queries and their norms"),
    "score_tokens": Kernel("step", "q, K of the selected pages", "a score for each query head and token"),
    "choose_tokens": Kernel("step", "token scores", "selected_tokens, and which heads keep each"),
    "attend_tokens": Kernel("step", "q, K and V of the selected tokens, block_table", "out and lse of each split"),
    "solve_tokens": Kernel("step", "q, K of the selected tokens in each iteration, their V once", "out and gap"),
    "bound_tokens": Kernel(
        "certificate", "sketches and residuals of every token", "the omitted tokens' mass, in parts"
    ),
    "estimate_omitted": Kernel("certificate", "page and token scores", "the omitted tokens' mass, in parts"),
    "certify": Kernel("certificate", "the omitted mass, out, lse, radii", "the certificate"),
    "attend_failed": Kernel("failed", "q, K and V of every token of rows not certified", "out and lse of each split"),
    "merge_failed": Kernel("failed", "out and lse of the splits", "out and lse of rows not certified"),
    "attend_pages": Kernel("step", "q, K and V of the selected pages, block_table", "out and lse of each split"),
    "attend_given_pages": Kernel("instead", "q, K and V of the pages given, block_table; on GPUs", "out and lse"),
    "attend_dense": Kernel("dense", "q, K and V of every token, block_table", "out and lse of each split"),
    "merge_splits": Kernel("step", "out and lse of the splits", "out and lse"),
    "merge_states": Kernel("caller", "out and lse over disjoint sets of tokens", "out and lse over all of them"),
}
WHEN = {
    "step": "each step",
    "routing": "steps that route",
    "between": "steps that do not route",
    "certificate": "for a certificate",
    "append": "after an append",
    "instead": "for given pages",
    "failed": "rows not certified",
    "dense": "decode_dense",
    "caller": "merge_states",
}
_ROUTING = ("route_pages", "route_rows", "score_super_pages", "select_super_pages", "score_pages", "select_pages")
_SUMMARIES = {
    "mean": "the mean of its keys",
    "subpage_mean": "the means of its groups of {subpage} tokens",
    "sketch": "its tokens' sketches",
    "box": "the least and the greatest value of its keys in each channel (box weight {box_weight:g})",
}
_SCALES = {
    "page": "{bits}-bit codes with a scale for each page",
    None: "{dtype}",
}
_TRANSFORMS = {
    "page_channel": "a scale for each page and channel",
    "hadamard": "after a Hadamard rotation, a scale for each token",
}
_CERTIFICATES = {
    "rigorous": "A certificate bounds the mass of the tokens left out by their sketches and residual norms, every "
    "rounding outward: a proof.",
    "calibrated": "A certificate estimates the mass of the tokens left out by their sketches and adds the margin of "
    "{margin}: it covers as often as measured there, and proves nothing.",
    "estimate": "A certificate estimates the mass of the tokens left out by scores of pages and tokens: it can be too "
    "small, and promises nothing.",
}
_FALLBACKS = {
    "dense": "The rows (sequence, KV head) of heads that fail are attended to in whole, on the device; that reads "
    "their K and V once more.",
    "expand": "The rows (sequence, KV head) of heads that fail are tried again with twice the pages and tokens, up to "
    "{most:,} pages, then attended to in whole, on the device.",
    "capped": "A head that fails keeps its result, and the flag says so.",
}
_SOLVERS = {"entropic_projection": "mirror descent", "frank_wolfe": "pairwise Frank-Wolfe"}
_REDUCES = {
    "softmax_sum": "add up their softmaxes over the pages",
    "max": "take the greatest of their scores",
}


def kernels(plan: Plan) -> list[tuple[str, Kernel]]:
    """The plan's kernels, those of a decode step first and in its order."""
    named = [(name, KERNELS[name]) for name in plan.kernels]
    if plan.two_levels:
        of_beam = replace(KERNELS["score_pages"], reads="q, summaries of the beam's pages, block_table")
        named = [(name, of_beam if name == "score_pages" else kernel) for name, kernel in named]
    if plan.sketch:
        by_sketch = {"score_tokens": "prepared queries, sketches of the selected pages"}
        if plan.scores_by_sketch:
            by_sketch["score_pages"] = "prepared queries, sketches of every page, block_table"
        named = [(name, replace(kernel, reads=by_sketch.get(name, kernel.reads))) for name, kernel in named]
    if plan.prepares_in_place:
        gives = "rotated queries and their norms; on GPUs score_tokens does"
        named = [(name, replace(kernel, gives=gives) if name == "prepare_queries" else kernel) for name, kernel in named]
    if plan.orders_given_itself:
        on_cpu = replace(KERNELS["order_pages"], reads="pages given by the caller, on a CPU")
        named = [(name, on_cpu if name == "order_pages" else kernel) for name, kernel in named]
    if plan.merges_in_cluster:
        merged = {name: "out and lse; on a CPU those of each split" for name in ("attend_pages", "attend_tokens")}
        named = [(name, replace(kernel, gives=merged.get(name, kernel.gives))) for name, kernel in named]
    if plan.projects:
        named = [(name, replace(kernel, when="dense") if name == "merge_splits" else kernel) for name, kernel in named]
    if plan.refreshes:
        named = [(name, replace(kernel, when="routing") if name in _ROUTING else kernel) for name, kernel in named]
    of_step = lambda kernel: "step" if kernel.when == "routing" else kernel.when
    return sorted(named, key=lambda item: list(WHEN).index(of_step(item[1])))


def shape(plan: Plan) -> str:
    """The attention layer and its cache."""
    model, cache = plan.spec.model, plan.spec.cache
    cap = "" if model.logits_soft_cap is None else f", logits capped at {model.logits_soft_cap:g}"
    return (
        f"{model.num_q_heads} query heads on {model.num_kv_heads} KV heads of {model.head_dim} (group of "
        f"{plan.spec.group_size}), {model.dtype}{cap}; caches {plan.cache_shape} in {cache.kv_dtype} ({cache.layout})."
    )


def summary(plan: Plan) -> str:
    """What is kept of a page and of a token beside the cache, and what that costs."""
    routing, texts = plan.spec.routing, []
    if not plan.scores_by_sketch:
        what = _SUMMARIES[routing.summary].format(subpage=routing.subpage, box_weight=routing.box_weight or 0)
        stored = _SCALES[plan.summary_scale].format(bits=routing.summary_bits, dtype=plan.spec.cache.kv_dtype)
        texts.append(
            f"A page is summarised by {what}, stored as {stored}: {cost.summary_bytes_per_page(plan):,} bytes a page "
            f"and layer, {cost.summary_bytes_per_token(plan):,.4g} a token, {cost.summary_share(plan):.1%} of the KV "
            "cache."
        )
    if plan.sketch:
        sketch, per_token = plan.spec.sketch, cost.sketch_bytes_per_token(plan)
        balanced = f", balanced over RoPE pairs by {sketch.balance}" if sketch.balance else ""
        texts.append(
            f"A token is sketched by {sketch.bits}-bit codes of its key ({_TRANSFORMS[sketch.transform or '']})"
            f"{balanced}, and the norm of what they miss: {per_token:,.4g} bytes a token and layer, "
            f"{per_token / cost.token_bytes(plan):.1%} of the KV cache."
        )
    if plan.sketch and not plan.scores_by_sketch or plan.certified:
        kept = cost.kept_bytes_per_token(plan)
        radii = (
            f" with the radii of its pages ({cost.radii_bytes_per_page(plan):,} bytes a page)" if plan.certified else ""
        )
        texts.append(
            f"All that is kept beside the cache{radii}: {kept:,.4g} bytes a token, {kept / cost.token_bytes(plan):.1%}."
        )
    return " ".join(texts)


def routing(plan: Plan) -> str:
    """How pages are chosen."""
    routing, page_size = plan.spec.routing, plan.spec.cache.page_size
    group = f"The query heads of a KV head {_REDUCES[routing.group_reduce]} and keep"
    if plan.spec.group_size == 1:
        group = "Each head keeps"
    first, last = (f"{n} pages" if n > 1 else "page" for n in (routing.sink_pages, routing.recent_pages))
    kept = f"always the first {first} and" if routing.sink_pages else "always"
    levels = ""
    if plan.two_levels:
        share = "in four launches"
        if plan.fused_routing:
            places = " and ".join(f"sm_{major}{minor}" for major, minor in plan.routed_on)
            share = f"in one launch on {places}, where blocks form clusters and have the shared memory, elsewhere in four"
        levels = (
            f" Super-pages of {routing.super_pages} pages are scored first, by summaries of the same form, and then the pages of "
            f"the best {routing.beam} alone: from {routing.beam * (routing.super_pages or 0) * page_size:,} tokens on routing reads "
            f"as much of the pages whatever the context; {share}."
        )
    refresh = ""
    if plan.refreshes:
        refresh = (
            f" Given a routing, one of {routing.refresh} steps chooses; the others keep its pages and take in those begun "
            "since, in one small launch."
        )
    return (
        f"{group} {routing.pages} pages, {kept} the last {last}: {routing.pages * page_size:,} tokens. "
        f"Up to that context every page is kept and none is scored.{levels}{refresh}"
    )


def candidates(plan: Plan) -> str:
    """Which tokens are attended to, and with what weights."""
    spec = plan.spec
    weights = _weights(plan)
    chosen = spec.candidates
    if not plan.token_budget:
        return f"All their tokens are attended to. {weights}"
    if chosen.pages is not None:
        by = "the sketches" if plan.sketch else "exact logits"
        return (
            f"Of them the {chosen.pages} pages whose tokens have most of the softmax mass by {by} are attended to "
            f"whole, {plan.kept_tokens:,} tokens. {weights}"
        )
    lists = "for each query head" if chosen.share == "head" else "for the group together"
    if spec.group_size == 1:
        lists = "for each head"
    by = "logits by their sketches" if plan.sketch else "logits"
    count = f"{plan.kept_tokens:,}"
    if chosen.mass is not None:
        count = f"fewest that reach {chosen.mass:.4g} of their softmax mass, {plan.least_tokens:,} to {count},"
    below = max(plan.dense_below, plan.least_tokens if chosen.mass is not None else plan.kept_tokens)
    return (
        f"Of their tokens the {count} with the largest {by} are attended to, chosen {lists}; "
        f"contexts up to {below:,} keep every token. {weights}"
    )


def break_even(plan: Plan) -> str:
    """Up to which context a step is read whole, and on what devices that was measured."""
    spec = plan.spec
    if plan.projects:
        return "Every step is routed: attention to all is another operator."
    told = "Steps that the host knows to be short, by max_seq_len or the block table's width, attend to all"
    if spec.routing.dense_up_to is not None:
        return f"{told}: up to {spec.routing.dense_up_to:,} tokens, as the spec says."
    found = []
    for device, entry in spec.tuning.items():
        even = entry["knobs"].get("dense_up_to", ())
        found.append(f"{device}: " + ", ".join(f"{tokens:,} tokens at batch {batch}" for batch, tokens in even))
    if not found:
        return "No device is tuned (vashista-gen tune): steps are read whole only where no token can be dropped."
    return f"{told}, as measured on {'; '.join(found)}; on other devices where no token can be dropped."


def _weights(plan: Plan) -> str:
    """How the weights of the candidates are computed."""
    scale, attention = f"{plan.spec.model.sm_scale:.6g}", plan.spec.attention
    if not plan.projects:
        return f"Weights: softmax(s / {attention.epsilon:g}), s = {scale} <q, k>."
    return (
        f"Weights: a on the simplex with the least {plan.objective}, q' = {scale} q, after {attention.iterations} "
        f"iterations of {_SOLVERS[attention.solver]}: a projection on the candidates' hull, another operator than "
        "softmax."
    )


def certificate(plan: Plan) -> str:
    """What a step says of the tokens left out, and what it does about it."""
    spec = plan.spec
    if plan.projects:
        return (
            "The second result is a gap: how far the weights are at most from the best on these candidates, rounding "
            "included. What the tokens left out would change is not stated. decode_dense is softmax."
        )
    if not plan.certified:
        return "No certificate: what the tokens left out weigh is not stated."
    certificate = spec.certificate
    text = _CERTIFICATES[certificate.kind].format(margin=certificate.margin)
    passes = f"A head is certified when the share left out, its leakage, is at most {certificate.tolerance:g}."
    when = ""
    if (certificate.every, certificate.heads) != (1, 1):
        steps = f"at contexts that are multiples of {certificate.every:,}" if certificate.every != 1 else "in each step"
        which = f"one of {certificate.heads} KV heads in turn" if certificate.heads != 1 else "every KV head"
        share = cost.audited_share(plan)
        when = f" Audited {steps}: {which}, {share:.2%} of all; the rest is not certified and not acted on."
    action = _FALLBACKS[spec.fallback].format(most=spec.routing.pages << plan.expand_rounds)
    return f"{text} {passes}{when} {action}"
